"""Vectors and what is made of them: embeddings, scores, rankings."""
