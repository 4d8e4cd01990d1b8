"""What long work tells the person who waits: on standard error, so that standard output stays data."""

import functools
import sys


def log(text: str) -> None:
    """One line about what is going on."""
    print(text, file=sys.stderr, flush=True)


@functools.cache
def log_once(text: str) -> None:
    """`log`, but for a line that has been told before."""
    log(text)
