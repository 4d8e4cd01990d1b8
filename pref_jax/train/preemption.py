"""SIGTERM, by which schedulers take a machine back: a training saves what it has before it ends.

The exit code is 143, that of a process which a SIGTERM has ended, so that whoever restarts such processes restarts this
one. Outside trainings a SIGTERM ends a process at once: stages are done or not, never half.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM


class Preemption:
    """Whether somebody wants the machine back; made by `watch`."""

    def __init__(self) -> None:
        self._signalled = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        del number, frame
        self._signalled = True

    def asked(self, step: int) -> bool:
        """Whether to save and end after this step; of a job of several processes all answer alike.

        There JAX's own handler takes the signal, whichever process gets it, and agrees with the others on a step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled


@contextlib.contextmanager
def watch() -> Iterator[Preemption]:
    """Keeps a SIGTERM for the block, unless somebody else handles it or the block runs beside the main thread.

    Example:
      with watch() as preemption:
          for step in range(1000):
              ...
              if preemption.asked(step):
                  break
    """
    found = Preemption()
    alone = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield found
        return
    signal.signal(signal.SIGTERM, found.note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
