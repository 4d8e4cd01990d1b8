"""Personal baselines on an adapted transformer, beside the shared reward: what configs/compare_small.py leaves out.

command   python -m experiments.compare --config=configs/adapted_heads.py --workdir=runs/adapted_heads
variants  (none) three seeds; one_seed; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 8 GB of memory; a quarter of an hour, of which pretraining the decoders is half if nobody has yet
data      UF-P-2 ALL as in configs/compare_small.py, whose steps and batches these are
"""

from typing import Any

from ml_collections import ConfigDict

from configs import compare_small
from configs.compare_small import ADAPTED_HEADS, VARIANTS

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "") -> ConfigDict:
    table: Any = compare_small.get_config(variant)
    config = table.datasets.uf_p_2_all.copy_and_resolve_references()
    config.methods = ("shared reward", *ADAPTED_HEADS)
    config.left_out = ()
    return config
