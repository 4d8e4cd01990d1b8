"""Your own votes of any form and format (docs/votes.md; pref_jax/data/sources/jsonl/reader.py).

command   python -m experiments.compare --config=configs/jsonl.py --config.source.path=votes.jsonl --workdir=runs/mine
variants  (none); linear: the methods on frozen features only
hardware  2 CPU cores; with a large `backbone.name` a GPU or TPU
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, crowdrag

VARIANTS = (("linear",),)


def get_config(variant: str = "") -> ConfigDict:
    (kind,) = common.choose(variant, *VARIANTS)
    config: Any = crowdrag.get_config()
    config.dataset = "my votes"
    config.seeds = (0,)
    linear = ("shared (features)", "LoRe")
    config.methods = linear if kind == "linear" else ("shared reward", "CoPL", "CoPL + shrinkage", *linear)
    config.source = common.votes()
    config.lore.update(common.QUICK_LORE)
    return config
