"""What CoPL's text nodes are worth: the same votes on ever more responses, until no two users share any.

command   python -m experiments.sharing --config=configs/sharing.py --workdir=runs/sharing
variants  (none) three seeds; one_seed; smoke: a minute, for tests, too small to mean anything
hardware  2 CPU cores, 4 GB of memory; an hour and a half
data      the quickstart's world with 250, 1 000 and 4 000 training prompts, each with 16, 4 or 1 of the 4 000 training
          votes; in the graph a response's row is its own ("table") or also has a linear map of its text ("both")
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("one_seed",), ("smoke",))
METHODS = ("shared reward", "CoPL")
PROMPTS = (250, 1000, 4000)
NODES = ("table", "both")


def get_config(variant: str = "") -> ConfigDict:
    seeds, size = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "CoPL by how much is shared", "keep_compiled": True})
    config.seeds = (0,) if seeds == "one_seed" or size == "smoke" else (0, 1, 2)
    config.decoders = "runs/decoders"
    config.datasets = ConfigDict()
    for prompts in PROMPTS:
        for nodes in NODES:
            own = _world(prompts, nodes, smoke=size == "smoke")
            own.seeds, own.pretrain.folder = config.get_ref("seeds"), config.get_ref("decoders")
            config.datasets[f"{prompts}_{nodes}"] = own
    return config


def _world(prompts: int, nodes: str, *, smoke: bool) -> Any:
    title = f"{prompts} prompts, {nodes}"
    # The shared reward is the same for all kinds of nodes.
    methods = METHODS if nodes == NODES[0] else METHODS[1:]
    config: Any = common.small(title, methods, common.world(train_prompts=prompts))
    config.pretrain.batch_size = 32  # as in configs/quickstart.py
    config.left_out = () if methods == METHODS else (f"{METHODS[0]}: as with {NODES[0]} nodes",)
    if smoke:
        common.shrink(config)
        config.source.train_prompts = 12 * prompts // PROMPTS[0]
    config.graph.nodes = nodes
    config.graph.dim = 8 if smoke else 64  # 4 000 votes say no more
    return config
