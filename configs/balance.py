"""What balancing does to CoPL's experts: none, by a loss, by a bias; four attributes, embedded data, no download.

command   python -m experiments.compare --config=configs/balance.py:three_seeds --workdir=runs/balance
variants  (none) one seed; three_seeds; tiny: seconds, for tests, of no use as a result
hardware  2 CPU cores, 2 GB of memory
time      5 minutes a seed
expected  without balancing more than half of the experts serve nobody; with the loss none, at the same accuracy
"""

from ml_collections import ConfigDict

from configs import common, embedded

VARIANTS = (("three_seeds",), ("tiny",))
METHODS = ("CoPL", "CoPL (balancing loss)", "CoPL (balancing bias)")


def get_config(variant: str = "") -> ConfigDict:
    words = [word for word in common.choose(variant, *VARIANTS) if word]
    config = embedded.get_config(",".join(["uf_p_4_all", *words]))
    config.dataset, config.methods = f"{config.dataset}, experts balanced", METHODS
    return config
