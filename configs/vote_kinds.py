"""What ties and strengths are worth: the same synthetic votes with them, and without.

command   python -m experiments.vote_kinds --config=configs/vote_kinds.py --workdir=runs/vote_kinds
variants  (none) ten seeds; smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores, 2 GB of memory
worlds    answers by noisy margins. For LoRe tastes are mixtures of 4 directions in 32 features, Dirichlet(0.1), tested
          on responses that nobody voted on; for CoPL's graph there are two tastes, tested on further pairs of those
          that people voted on. (In LoRe's world the graph finds no tastes, with ties or without.)
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("smoke",),)
METHODS = ("shared", "shared (decided)", "LoRe", "LoRe (decided)", "CoPL's graph", "CoPL's graph (decided)")


def get_config(variant: str = "") -> ConfigDict:
    (size,) = common.choose(variant, *VARIANTS)
    config = ConfigDict(
        {"dataset": "Synthetic votes with ties and strengths", "seeds": tuple(range(10)), "methods": METHODS}
    )
    # Share of ties, levels of strength.
    config.kinds = ((0.2, 1), (0.4, 1), (0.0, 3), (0.4, 3))
    config.noise = 0.5
    world = {"alpha": 0.1, "wrong": 0.0, "seen": 300, "unseen": 100, "features": 32, "directions": 4, "tests": 50}
    config.world = ConfigDict({**world, "pairs": 15, "responses": 2000})
    config.known = ConfigDict({**world, "alpha": 0.01, "directions": 2, "pairs": 12, "responses": 120, "known": True})
    if size == "smoke":
        config.update(
            {"seeds": (0,), "kinds": ((0.4, 3),), "methods": [name for name in METHODS if "LoRe" not in name]}
        )
        for world in (config.world, config.known):
            world.update({"seen": 16, "unseen": 4, "tests": 4, "responses": 30, "features": 6, "directions": 2})
            world.pairs = 6
    return config
