"""One reward for everybody: CoPL's transformer with plain LoRA, no experts, no users (Bradley-Terry)."""

from experiments import reward_model
from experiments.stages import Run, load_data, method_folder, scored, test_pairs

METHOD = "shared reward"


def shared(run: Run) -> None:
    """Trains on all seen users' pairs and scores, unless that is done."""
    data = load_data(run)
    train = data.pairs(("train", "validation"), seen=True)
    scored(
        run,
        METHOD,
        lambda: reward_model.train_and_score(
            run, method_folder(run, METHOD), test_pairs(data), train, routing="none", num_experts=0
        ),
    )
