"""The one table: every method on every data set that two CPU cores hold, within an hour.

command   python -m experiments.compare --config=configs/compare_small.py --workdir=runs/compare \
              --config.crowdrag_path=../shared/data/crowdrag --publish=RESULTS.md
variants  (none) three seeds; one_seed; tiny: a minute, for tests, of no use as a result
hardware  2 CPU cores, 4 GB of memory
data      UF-P-2, UF-P-4 and PersonalLLM's tastes on the embedded world, the same number of pairs a user (ALL) or any
          from one on (AVG); Crowd RAG, which is left out (the report says so) without --config.crowdrag_path=DIR, a
          clone of github.com/webis-de/sigir25-rag-crowdsourcing
smaller   than configs/embedded.py in users, batches and steps, alike for all methods, so that the table is done within
          the hour; decoders are pretrained once a seed and shared by all sets (config.decoders), compiled programs kept
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, crowdrag
from configs.embedded import NAMES, SETTINGS
from experiments.compare import METHODS

VARIANTS = (("one_seed",), ("tiny",))
EMBEDDED: dict[str, dict[str, Any]] = {**SETTINGS, "personalllm_avg": {**SETTINGS["personalllm"], "protocol": "AVG"}}
TITLES = {**NAMES, "personalllm": "PersonalLLM ALL", "personalllm_avg": "PersonalLLM AVG"}
# Balanced experts are a study of their own, and nobody else votes on a pair of the world, nor has its decoder a score
# head. Heads on an adapted transformer need more steps than the hour allows: here they stand on its frozen features.
LEFT_OUT = (
    *("CoPL (balancing loss)", "CoPL (balancing bias)", "CoPL (shrunk)", "majority of others", "reference head"),
    *("I2E", "VPL", "PAL-A", "PAL-B", "GPO"),
)
# On Crowd RAG's long texts each method that adapts the transformer takes minutes a seed: configs/crowdrag.py has them.
TOO_LONG = ("group oracle", "oracle (features)", "shared reward", "CoPL", "deep LoRe", "P-RLHF")


def get_config(variant: str = "") -> ConfigDict:
    seeds, size = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "Methods and data sets, small", "keep_compiled": True})
    config.seeds = (0,) if seeds == "one_seed" or size == "tiny" else (0, 1, 2)
    config.crowdrag_path = ""
    config.decoders = "runs/decoders"
    config.datasets = ConfigDict({name: _embedded(name, tiny=size == "tiny") for name in EMBEDDED})
    config.datasets.crowdrag = _crowdrag()
    config.datasets.crowdrag.source.path = config.get_ref("crowdrag_path")
    for name in config.datasets:
        own: Any = config.datasets[name]
        own.seeds = config.get_ref("seeds")
        if "pretrain" in own:
            own.pretrain.folder = config.get_ref("decoders")
    return config


def _embedded(name: str, *, tiny: bool) -> Any:
    setting = EMBEDDED[name]
    grouped = setting["tastes"] != "dirichlet"
    methods = tuple(m for m in METHODS if m not in LEFT_OUT and (grouped or "oracle" not in m))
    source = common.world(**setting, seen_users=300, unseen_users=80, test_pairs_per_user=15)
    config = common.small(f"embedded {TITLES[name]}", methods, source)
    _smaller(config)
    config.baselines.context = setting["pairs_per_user"]  # what LoRe and CoPL read of an unseen user, too
    if setting["pairs_per_user"] == 16:
        config.graph.epochs = 80
    if tiny:
        common.shrink(config)
        config.source.pairs_per_user = min(config.source.pairs_per_user, 4)
    return config


def _smaller(config: Any) -> None:
    """Half a batch and fewer steps than configs/common.py has."""
    config.reward.update({"batch_size": 32, "checkpoint_every": 0})
    config.reward.optimizer.num_steps = 130
    config.deep.update({"checkpoint_every": 0})
    config.deep.optimizer.num_steps = 130


def _crowdrag() -> Any:
    config: Any = crowdrag.get_config("linear")
    config.methods = (*(m for m in METHODS if m not in LEFT_OUT + TOO_LONG), "majority of others")
    return config
