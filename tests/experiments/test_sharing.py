"""What the study of sharing says of accuracies."""

from ml_collections import ConfigDict

from configs import sharing
from experiments.sharing import curves, told

NAMES = [f"{prompts}_{nodes}" for prompts in sharing.PROMPTS for nodes in sharing.NODES]


def test_accuracies_stand_by_nodes_people_and_votes_a_prompt():
    config = sharing.get_config()
    config.seeds = (4, 2)
    datasets = {}
    for place, name in enumerate(NAMES):
        rows = [
            {"method": "CoPL", "seed": seed, "metrics": {"seen/accuracy": place + seed / 10, "unseen/accuracy": 0.5}}
            for seed in (2, 4)
        ]
        datasets[name] = {"rows": [{"method": "shared reward", "seed": 2, "metrics": {}}, *rows]}
    found = curves(config, datasets)
    places = {name: place for place, name in enumerate(NAMES)}
    # 500 users of 8 votes on 250, 1 000 and 4 000 prompts; seeds in the config's order.
    assert found["table", "seen"] == {
        votes: [places[f"{prompts}_table"] + 0.4, places[f"{prompts}_table"] + 0.2]
        for votes, prompts in ((16, 250), (4, 1000), (1, 4000))
    }
    assert found["both", "unseen"] == {16: [0.5, 0.5], 4: [0.5, 0.5], 1: [0.5, 0.5]}


def test_losses_are_paired_by_seed():
    text = told({("both", "seen"): {16: [0.90, 0.80], 1: [0.88, 0.77]}}, 2)
    # Differences of -2 and -3 points: mean -2.5, Student's t of one degree 12.706 times 0.5.
    assert "-2.5 ± 6.4" in text
    assert "85.0" in text
    assert isinstance(sharing.get_config("smoke"), ConfigDict)
