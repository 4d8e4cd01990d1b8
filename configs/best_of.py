"""What a personal reward is worth when it picks: best of 16 answers to new prompts, by each group's true utility.

command   python -m experiments.best_of --config=configs/best_of.py --workdir=runs/best_of
variants  (none) five worlds; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 2 GB of memory; 10 minutes beside other work, more than half of them for the decoder
data      the synthetic world with four groups of users, who care for one attribute each; 16 answers to every prompt,
          16 votes a user; one small decoder, pretrained on the world's text, reads all of the worlds
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("smoke",),)
METHODS = ("shared (features)", "LoRe")


def get_config(variant: str = "") -> ConfigDict:
    (size,) = common.choose(variant, *VARIANTS)
    world = common.world("uf_p_4", responses_per_prompt=16, pairs_per_user=16, train_prompts=100, test_prompts=50)
    config: Any = common.small("Best of 16, synthetic UF-P-4", METHODS, world)
    config.seeds = (0, 1, 2, 3, 4)
    config.pretrain.batch_size = 32  # as in configs/quickstart.py
    config.lore.update(common.QUICK_LORE)
    if size == "smoke":
        common.shrink(config)
        config.seeds = (0, 1)
        config.source.update({"train_prompts": 4, "test_prompts": 3, "pairs_per_user": 4})
    return config
