"""What long work tells the person who waits: on standard error, so that standard output stays data."""

import sys


def log(text: str) -> None:
    """One line about what is going on."""
    print(text, file=sys.stderr, flush=True)
