"""Deep LoRe where frozen features lack the signal: a decoder that is pretrained too briefly; two kinds of users.

command   python -m experiments.compare --config=configs/deep.py:three_seeds --workdir=runs/deep
variants  (none) one seed; three_seeds; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 2 GB of memory
decoder   pretrained for 300 steps instead of 700, once a seed, in runs/decoders (config.pretrain.folder; "" for none)
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("three_seeds",), ("smoke",))
METHODS = ("shared reward", "group oracle", "shared (features)", "oracle (features)", "LoRe", "deep LoRe")


def get_config(variant: str = "") -> ConfigDict:
    seeds, size = common.choose(variant, *VARIANTS)
    config: Any = common.small("synthetic UF-P-2, features without the signal", METHODS, common.world())
    config.seeds = (0, 1, 2) if seeds == "three_seeds" else (0,)
    config.pretrain.folder = "runs/decoders"
    config.pretrain.optimizer.num_steps = 300
    if size == "smoke":
        common.shrink(config)
    return config
