"""LoRe on planted low-rank worlds: diversity of tastes x votes a user x wrong votes; no text, no transformer.

command   python -m experiments.planted --config=configs/lore_planted.py --workdir=runs/planted
variants  (none) the whole grid; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 2 GB of memory
worlds    tastes are mixtures of 5 directions in 64 features, Dirichlet(alpha); alpha None: all users alike
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("smoke",),)


def get_config(variant: str = "") -> ConfigDict:
    (size,) = common.choose(variant, *VARIANTS)
    config = ConfigDict({"dataset": "Planted low-rank worlds", "seeds": (0, 1, 2)})
    config.methods = ("given head", "Bradley-Terry", "per-user model", "LoRe (published)", "LoRe")
    config.methods += ("LoRe (true directions)",)
    config.alphas = (0.01, 0.1, 1.0, None)
    config.pairs = (5, 15, 45)
    config.wrongs = (0.0, 0.2)
    config.world = ConfigDict(
        {"seen": 500, "unseen": 200, "tests": 50, "responses": 4000, "features": 64, "directions": 5}
    )
    config.lore = ConfigDict({})  # lore_jax/fitting/bradley_terry.py, the full search
    if size == "smoke":
        config.update({"seeds": (0, 1), "alphas": (0.1,), "pairs": (5, 6), "wrongs": (0.0,)})
        config.lore.update({**common.QUICK_LORE, "ranks": (1,), "components": (2,), "variances": (3.0,), "steps": 20})
        config.world.update({"seen": 12, "unseen": 4, "tests": 4, "responses": 30, "features": 6, "directions": 2})
    return config
