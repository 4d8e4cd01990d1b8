"""Real votes of real people: UKPConvArg1, which of two arguments is the more convincing, on a sentence encoder.

command   python -m experiments.compare --config=configs/ukp_convarg.py --config.source.path=DIR --workdir=runs/ukp
          DIR: a clone of github.com/UKPLab/acl2016-convincing-arguments, or its folder data/UKPConvArg1-full-XML
variants  (none) three seeds; one_seed; linear: the methods on frozen features only
hardware  2 CPU cores, 4 GB of memory
encoder   as of configs/crowdrag.py
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, crowdrag

VARIANTS = crowdrag.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config: Any = crowdrag.get_config(variant)
    config.dataset = "UKPConvArg1"
    config.source = common.rows("ukp_convarg", max_votes_per_user=None)
    config.lore.update(common.QUICK_LORE)
    config.backbone.max_length = 256 if "linear" in variant else 128
    return config
