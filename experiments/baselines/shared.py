"""One reward for everybody: CoPL's transformer with plain LoRA, no experts, no users (Bradley-Terry)."""

from experiments import reward_model
from experiments.runner.workspace import Run, method_folder, scored

METHOD = "shared reward"


def shared(run: Run) -> None:
    """Trains on all seen users' pairs and scores, unless that is done."""
    scored(
        run,
        METHOD,
        lambda: reward_model.train_and_score(run, method_folder(run, METHOD), routing="none", num_experts=0),
    )
