"""Where pages' vectors are kept, to be searched."""
