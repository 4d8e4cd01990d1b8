"""What CoPL's graph finds of real tastes: further pairs of jokes that others rated, beside methods that read no text.

command   python -m experiments.warm_pairs --config=configs/jester_warm.py --config.source.path=DIR --workdir=runs/warm
          DIR: folder of jester-data-1.zip and jester_dataset_1_joke_texts.zip
variants  (none) five seeds; cause: what each part of the default does, and why the published graph finds nothing
          smoke: seconds, for tests, on ratings drawn at random, too small to mean anything
hardware  2 CPU cores, 1 GB of memory
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("cause",), ("smoke",))
METHODS = (
    "item values",
    "matrix factorisation",
    "user-kNN",
    "gcf",
    "normed, to the end",
    "no layer, to the end",
    "linear",
    "LoRe on responses",
)
CAUSE = (
    "item values",
    "gcf",
    "gcf, by loss, to the end",
    "gcf, one layer",
    "gcf, all layers read out",
    "gcf, counted edges",
    "linear",
    "linear, no layer",
    "linear, no bias",
    "linear, weak prior",
    "linear, by accuracy",
    "linear, counted edges",
)


def get_config(variant: str = "") -> ConfigDict:
    cause, size = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "Jester, known jokes", "source": {"name": "jester", "path": ""}})
    config.seeds = (0, 1, 2) if cause else (0, 1, 2, 3, 4)
    config.methods = CAUSE if cause else METHODS
    config.pairs = (4, 40) if cause else (4, 8, 16, 40)
    config.world = ConfigDict({"seen": 1000, "unseen": 300, "min_ratings": 70, "min_difference": 3.0, "most": 40})
    config.world.update({"validation": 3, "tests": 20})
    if size == "smoke":
        config.source.name = "random"
        config.update(
            {"seeds": (0,), "pairs": (3,), "methods": ("item values", "user-kNN", "gcf", "linear", "LoRe on responses")}
        )
        config.world.update({"seen": 12, "unseen": 4, "min_ratings": 8, "min_difference": 0.5, "most": 4, "tests": 3})
    return config
