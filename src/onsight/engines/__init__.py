"""How answers are made; sibling engines never import each other."""
