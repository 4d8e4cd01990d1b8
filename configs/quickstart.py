"""CoPL and LoRe against one shared reward on synthetic data: two kinds of users, no download.

command   make quickstart
          python -m experiments.quickstart --workdir=runs/quickstart
variants  (none) one seed; three_seeds; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 2 GB of memory
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("three_seeds",), ("smoke",))
METHODS = ("shared reward", "group oracle", "CoPL", "shared (features)", "oracle (features)", "LoRe")


def get_config(variant: str = "") -> ConfigDict:
    seeds, size = common.choose(variant, *VARIANTS)
    config = common.small("synthetic UF-P-2", METHODS, common.world())
    config.pretrain.batch_size = 32  # half of the text for the same number of steps
    config.reward.eval_batch_size = 64  # smaller batches stay in the caches of a CPU
    # Two kinds of programs in place of five: most of a fit as small as this one is compilation.
    config.lore.update({"components": (2, 4), "simplex": False, "clusters": 0, "line_search": "bisection"})
    config.seeds = (0, 1, 2) if seeds == "three_seeds" else (0,)
    if size == "smoke":
        common.shrink(config)
    return config
