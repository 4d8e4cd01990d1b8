"""LoRe on PRISM, as in the paper (arXiv 2504.14439): real people, each with another number of answers; anchored recipe.

command   python -m experiments.lore --config=configs/lore_prism.py:cpu --workdir=runs/lore_prism
          python -m experiments.lore --config=configs/lore_prism.py:h200 --workdir=runs/lore_prism_8b
variants  cpu (also without a word): the synthetic world in its place, four kinds of users (UF-P-4 AVG: 1 to 31 answers
          of a seen user, 16 of an unseen one), 400 seen and 100 unseen, a small decoder
          tpu_v5e_8, h200: the features of Skywork-Reward-Llama-3.1-8B-v0.2
          after a comma: three_seeds; smoke: the cpu variant in seconds, for tests, too small to mean anything
votes     on TPU and GPU HannahRoseKirk/prism-alignment from the hub, by the paper's rule: people with more than 5
          dialogues, 80 % of them seen, half of their dialogues to learn from, one pair for each rejected reply,
          rendered as plain text; pairs of equal scores, a coin's choice, are left out (--config.source.keep_ties=True)
hardware  cpu: 2 cores, 2 GB of memory; tpu_v5e_8: 8 chips of 16 GB, parameters cut over all; h200: one GPU of 141 GB.
          Nothing was run on TPU or GPU
recipe    `LoRe (published)` is the regularised one: 20 000 steps in turn on weights and basis, which is drawn to the
          score head of the reward model. The decoder of the cpu variant has none and takes the plain recipe
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = common.LORE_VARIANTS
METHODS = ("pretrained head", "shared (features)", "oracle (features)", "per-user model", "LoRe (published)", "LoRe")


def get_config(variant: str = "") -> ConfigDict:
    return common.lore(variant, _small, _large)


def _small() -> Any:
    source = common.world("uf_p_4", protocol="AVG", seen_users=400, pairs_per_user=16)
    config = common.lore_small("synthetic UF-P-4 AVG in place of PRISM, LoRe", source, METHODS)
    config.published = common.published(recipe="anchored", rank=4)
    config.studies = common.studies(shots=(2, 5, 10, 16), alphas=())
    return config


def _large(hardware: str) -> Any:
    config = common.lore_skywork("PRISM, LoRe", hardware, max_length=4096, source=common.public("prism"))
    config.published = common.published(recipe="anchored", rank=5)
    config.studies = common.studies(ranks=(1, 2, 5, 10), shots=(5, 10, 20, 30), alphas=())
    return config
