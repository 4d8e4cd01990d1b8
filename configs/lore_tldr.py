"""LoRe on TL;DR, as in the paper (arXiv 2504.14439): few workers with many answers each, half of them unseen.

command   python -m experiments.lore --config=configs/lore_tldr.py:cpu --workdir=runs/lore_tldr
          python -m experiments.lore --config=configs/lore_tldr.py:h200 --workdir=runs/lore_tldr_8b
variants  cpu (also without a word): the synthetic world in its place, 40 seen and 40 unseen users who care for one of
          two attributes (UF-P-2), 150 answers each, a small decoder
          tpu_v5e_8, h200: the features of Skywork-Reward-Llama-3.1-8B-v0.2
          after a comma: three_seeds; smoke: the cpu variant in seconds, for tests, too small to mean anything
votes     on TPU and GPU openai/summarize_from_feedback from the hub, by the paper's rule: the real workers' votes as
          annotated, workers halved into seen and unseen, at most 150 pairs of a seen and 50 of an unseen one from the
          part `train`, tests from the part `validation`
hardware  cpu: 2 cores, 2 GB of memory; tpu_v5e_8: 8 chips of 16 GB, parameters cut over all; h200: one GPU of 141 GB.
          Nothing was run on TPU or GPU
recipe    `LoRe (published)` is one Adam, 1000 steps, K = 5 (cpu: attributes, 2)
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = common.LORE_VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return common.lore(variant, _small, _large)


def _small() -> Any:
    source = common.world(seen_users=40, unseen_users=40, pairs_per_user=150)
    config = common.lore_small("synthetic UF-P-2 in place of TL;DR, LoRe", source)
    config.published = common.published(rank=2)
    config.studies = common.studies(alphas=())
    return config


def _large(hardware: str) -> Any:
    source = common.public("tldr", rule="lore")
    config = common.lore_skywork("TL;DR, LoRe", hardware, max_length=1024, source=source)
    config.published = common.published(rank=5)
    config.studies = common.studies(ranks=(1, 2, 5, 10), alphas=())
    return config
