"""The page at /ui: the tasks, in a browser."""
