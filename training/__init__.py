"""Training of Peek, the small vision-language model that ships with Onsight."""
