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
    config.reward.eval_batch_size = 64  # 6 % faster here than batches of 256
    # So that it ends within 3.5 minutes; the table is no worse for it.
    config.pretrain.batch_size = 32
    config.lore.update(common.QUICK_LORE)
    config.seeds = (0, 1, 2) if seeds == "three_seeds" else (0,)
    if size == "smoke":
        common.shrink(config)
    return config
