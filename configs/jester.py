"""Real ratings of real people: Jester, how funny jokes are, on a sentence encoder.

command   python -m experiments.compare --config=configs/jester.py --config.source.path=DIR --workdir=runs/jester
          DIR: folder of jester-data-1.zip and jester_dataset_1_joke_texts.zip
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
    config.dataset = "Jester"
    config.source = common.rows("jester", users=500, min_difference=0.0, per_response=1)
    return config
