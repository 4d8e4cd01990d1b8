"""How long a program takes at best: each of its pieces as long as its products or its bytes need, whichever is more."""

from typing import NamedTuple

from experiments.planning.hardware import Chip
from experiments.planning.program_cost import Work


class Estimate(NamedTuple):
    """Seconds of a call on each device, by the peaks of the data sheet: a real run takes longer.

    Attributes:
      products: seconds if there were matrix products alone.
      memory: seconds if all bytes of memory were moved, and nothing else done.
      collectives: seconds of all that is sent.
      exposed: seconds in which devices wait for what is sent and compute nothing.
      seconds: of the call.
      utilisation: share of `seconds` in which products run at the peak, recomputed ones among them.
    """

    products: float
    memory: float
    collectives: float
    exposed: float
    seconds: float
    utilisation: float


def estimate(work: Work, chip: Chip) -> Estimate:
    """The time of a call, collectives beside other work hidden as far as there is other work."""
    products, memory = work.operations / chip.operations, work.bytes / chip.bandwidth
    busy = waiting = beside = 0.0
    for piece in work.pieces:
        if piece.kind == "compute":
            busy += piece.times * max(piece.operations / chip.operations, piece.bytes / chip.bandwidth)
        elif piece.hidden:
            beside += piece.times * piece.bytes / chip.interconnect
        else:
            waiting += piece.times * piece.bytes / chip.interconnect
    exposed = waiting + max(0.0, beside - busy)
    seconds = busy + exposed
    return Estimate(products, memory, waiting + beside, exposed, seconds, products / seconds if seconds else 0.0)
