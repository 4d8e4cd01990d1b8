"""CoPL shrunk towards the shared reward: their margins mixed, by how much decided on prompts neither was trained on.

    margin = (1 - lambda) shared + lambda CoPL

With weak personal signal a personal model overfits; lambda = 0 is then the shared reward, and lambda = 1 is CoPL. Both
are Bradley-Terry logits, so the mixture is one too. lambda minimises the log-loss of the held-out answers,
which CoPL's graph does not know either (`stages.graph_pairs`).
"""

import numpy as np

from experiments import copl as copl_experiment
from experiments.baselines import shared
from experiments.runner.workspace import Run, load_scores, method_folder, scored
from pref_jax.errors import UserError

METHOD = "CoPL + shrinkage"
GRID = np.linspace(0, 1, 21)


def best_mixture(base: np.ndarray, personal: np.ndarray) -> tuple[float, list[float]]:
    """The lambda of `GRID` with the lowest mean -log sigmoid of the mixed margins [P], and the losses of all."""
    losses = [float(np.logaddexp(0, -((1 - share) * base + share * personal)).mean()) for share in GRID]
    return float(GRID[int(np.argmin(losses))]), losses


def shrunk(run: Run) -> None:
    """Mixes the margins of both methods, which are run first where that is not done."""
    if not run.config.reward.holdout_fraction > 0:
        raise UserError(
            f"{METHOD} chooses on held-out prompts; set --config.reward.holdout_fraction above 0, such as 0.2"
        )
    shared.shared(run)
    copl_experiment.copl(run)

    def score():
        names = (shared.METHOD, copl_experiment.METHOD)
        held = [np.load(method_folder(run, name) / "held_out.npy", allow_pickle=False) for name in names]
        share, losses = best_mixture(*held)
        (base, before), (personal, facts) = (load_scores(run, name) for name in names)
        own = {name: facts[name] for name in ("parameters_per_user", "context_pairs")}
        own |= {"stage_seconds": {"shared": before["seconds"], "personal": facts["seconds"]}}
        return (1 - share) * base + share * personal, {**own, "share_of_copl": share, "grid_losses": losses}

    scored(run, METHOD, score)
