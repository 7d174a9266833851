"""Bytes of a client become checked pixels here and nowhere else."""
