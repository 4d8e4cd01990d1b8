"""Your own votes: JSONL with a user, a prompt, a chosen and a rejected response in every line (README: your own data).

command   python -m experiments.compare --config=configs/jsonl.py --config.source.path=votes.jsonl --workdir=runs/mine
variants  (none)
hardware  2 CPU cores; with a large `backbone.name` a GPU or TPU
"""

from typing import Any

from ml_collections import ConfigDict

from configs import crowdrag


def get_config(variant: str = "") -> ConfigDict:
    config: Any = crowdrag.get_config(variant)
    config.dataset = "my votes"
    config.seeds = (0,)
    config.methods = ("shared reward", "CoPL", "shared (features)", "LoRe")
    config.source = ConfigDict(
        {
            "name": "jsonl",
            "path": "",
            "validation_fraction": 0.1,
            "test_fraction": 0.2,
            "unseen_fraction": 0.2,
        }
    )
    return config
