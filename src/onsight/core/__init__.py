"""What Onsight talks about: messages in, events out. Standard library only."""
