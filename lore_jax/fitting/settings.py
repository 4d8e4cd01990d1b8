"""Settings of fits. Imports no JAX: configs read it."""

import dataclasses

from pref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The published recipe (arXiv 2504.14439, section 4).

    Attributes:
      recipe: `reference`, or `anchored` to the reward model's own head, which is `reference` where there is none.
      rank: K.
      steps: of Adam; 0: as published, 1000 (`reference`) or 20 000 (`anchored`).
    """

    recipe: str = "reference"
    rank: int = 5
    steps: int = 0

    def __post_init__(self):
        """Raises UserError for an unknown recipe or numbers out of range."""
        if self.recipe not in ("reference", "anchored") or self.rank < 1 or self.steps < 0:
            raise UserError(f"{self}: recipe is reference or anchored, rank at least 1, steps at least 0")
