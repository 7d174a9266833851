"""`python -m onsight` is the `onsight` command."""

from onsight.cli import app

if __name__ == "__main__":
    app()
