"""LoRe on PersonalLLM, as in the paper (arXiv 2504.14439): tastes are mixtures over reward models; all four studies.

command   python -m experiments.lore --config=configs/lore_personalllm.py:cpu --workdir=runs/lore_personalllm
          python -m experiments.lore --config=configs/lore_personalllm.py:h200 --workdir=runs/lore_personalllm_8b
variants  cpu (also without a word): the synthetic world, tastes Dirichlet(0.1) over its four attributes, 48 answers a
          user, a small decoder; with worlds of alpha 0.01, 0.1 and 1 for the study of diversity
          tpu_v5e_8, h200: the features of Skywork-Reward-Llama-3.1-8B-v0.2
          after a comma: three_seeds; smoke: the cpu variant in seconds, for tests, too small to mean anything
votes     on TPU and GPU namkoong-lab/PersonalLLM from the hub, by the paper's rule: 1000 seen and 500 unseen users,
          Dirichlet(alpha) over 10 reward models (--config.source.alpha=), the best against the worst of 8 responses, 47
          pairs to train on and 9 of an unseen user
hardware  cpu: 2 cores, 2 GB of memory; tpu_v5e_8: 8 chips of 16 GB, parameters cut over all; h200: one GPU of 141 GB.
          Nothing was run on TPU or GPU
recipe    `LoRe (published)` is one Adam, 1000 steps; K as many as there are reward models, 10 (cpu: attributes, 4)
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = common.LORE_VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return common.lore(variant, _small, _large)


def _small() -> Any:
    source = common.world(tastes="dirichlet", pairs_per_user=48)
    config = common.lore_small("synthetic PersonalLLM, LoRe", source)
    config.published = common.published(rank=4)
    config.studies = common.studies(shots=(5, 9, 20, 30, 48))
    return config


def _large(hardware: str) -> Any:
    source = common.public("personalllm", rule="lore")
    config = common.lore_skywork("PersonalLLM, LoRe", hardware, max_length=1024, source=source)
    config.published = common.published(rank=10)
    config.studies = common.studies(ranks=(1, 2, 5, 10, 20), shots=(5, 9, 20, 30, 50), alphas=())
    return config
