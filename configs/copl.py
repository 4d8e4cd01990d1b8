"""CoPL in the paper's settings (arXiv 2503.01658) on Gemma; and the same road on two CPU cores with a small Gemma.

command   python -m experiments.copl --config=configs/copl.py:cpu --workdir=runs/copl
          python -m experiments.copl --config=configs/copl.py:gemma_7b,cpu --workdir=runs/copl_7b
          python -m experiments.copl --config=configs/copl.py:gemma_2b,h200,uf_p_2 --workdir=runs/gemma_2b
          --stage=graph, reward, adapt or report runs one stage alone
variants  gemma_2b (also without a word), gemma_7b: google/gemma-2b-it, google/gemma-7b-it; the paper's sizes and its
          recipe of the reward model, the graph by the default one or, with the word reference, by the paper's
          after a comma: tpu_v5e_8 (what gemma_* takes without a word), h200, or
          cpu (also without any word): a Gemma of 0.8 M parameters, pretrained on the synthetic world, with one
          key-value head as gemma_2b or all as gemma_7b
          smoke: that one in seconds, for tests, too small to mean anything
votes     after a comma: uf_p_2 (also without a word), uf_p_4, tldr, personalllm: the paper's sets, from the hub or from
          --config.source.path=DIR; --config.source.protocol=AVG for uneven users. On cpu the synthetic world stands in.
          votes: your own, --config.source.path=votes.jsonl (docs/votes.md); on cpu as without a word.
          Gemma's licence has to be accepted on the hub, or --config.backbone.name=DIR names a folder with the files
hardware  cpu: 2 cores, 2 GB of memory
          tpu_v5e_8: 8 chips of 16 GB; each has a whole gemma_2b, or an eighth of gemma_7b (fsdp=8)
          h200: one GPU of 141 GB
memory    a device's, and the time of a step of 128 pairs at best, by `experiments.plan` (results/plan), which compiles
          for machines that are not there: nothing was measured on TPU or GPU, a real step takes longer

              variant             mesh           micro-batches  remat  memory    step
              gemma_2b,tpu_v5e_8  data=8 fsdp=1             16  dots     8.6 GB   1.7 s
              gemma_7b,tpu_v5e_8  data=1 fsdp=8             16  dots    12.0 GB   9.2 s
              gemma_2b,h200       data=1 fsdp=1              4  dots   106.0 GB   4.0 s
              gemma_7b,h200       data=1 fsdp=1             16  dots    84.1 GB  13.1 s

          They are the fastest that fit, found by --search; with remat="full" and more micro-batches gemma_2b,h200 takes
          14 GB and gemma_7b,h200 26 GB for steps that last 2 % and 16 % longer
time      cpu: 3 min 40 s of pretraining and 1 min of CoPL, on two cores shared with other work; others: not measured
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import common
from copl_jax.graph import settings as recipes
from copl_jax.graph.settings import GCFConfig

MODELS = ("gemma_2b", "gemma_7b")
HARDWARE = ("cpu", "tpu_v5e_8", "h200")
# Each set as on TPU and GPU, and the tastes that stand in for it on a CPU.
SETS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "uf_p_2": ("UltraFeedback-P-2", lambda: common.public("ultrafeedback"), {}),
    "uf_p_4": (
        "UltraFeedback-P-4",
        lambda: common.public("ultrafeedback", attributes=4),
        {"tastes": "uf_p_4", "pairs_per_user": 16},
    ),
    "tldr": ("TL;DR", lambda: common.public("tldr"), {}),
    "personalllm": (
        "PersonalLLM",
        lambda: common.public("personalllm"),
        {"tastes": "dirichlet", "pairs_per_user": 16},
    ),
    "votes": ("my votes", common.votes, {}),
}
NAMES = {"uf_p_2": "UF-P-2", "uf_p_4": "UF-P-4"}
GROUPED = ("uf_p_2", "uf_p_4", "tldr")
VARIANTS = (MODELS, HARDWARE, ("reference",), tuple(SETS), ("smoke",))
MESHES = common.MESHES
# The fastest step of 128 pairs that fits by `experiments.plan --search`: how the mesh is cut, micro-batches, and what
# the backward pass keeps.
STEPS: dict[tuple[str, str], tuple[dict[str, int], int, str]] = {
    ("gemma_2b", "tpu_v5e_8"): ({"data": 8, "fsdp": 1}, 16, "dots"),
    ("gemma_7b", "tpu_v5e_8"): ({"data": 1, "fsdp": 8}, 16, "dots"),
    ("gemma_2b", "h200"): ({"data": 1, "fsdp": 1}, 4, "dots"),
    ("gemma_7b", "h200"): ({"data": 1, "fsdp": 1}, 16, "dots"),
}


def get_config(variant: str = "") -> ConfigDict:
    model, hardware, reference, votes, smoke = common.choose(variant, *VARIANTS)
    recipe, votes = recipes.paper_config if reference else recipes.linear_config, votes or "uf_p_2"
    if smoke or hardware == "cpu" or not (model or hardware):
        config = _small(model or "gemma_2b", votes, recipe)
        if hardware in MESHES:
            config.mesh.update(MESHES[hardware])
        if smoke:
            common.shrink(config)
        return config
    return _paper(model or "gemma_2b", hardware or "tpu_v5e_8", votes, recipe)


def _methods(grouped: bool) -> tuple[str, ...]:
    return ("shared reward", *(("group oracle",) if grouped else ()), "CoPL")


def _small(model: str, votes: str, recipe: Callable[..., GCFConfig]) -> Any:
    """Simulated users and a decoder of the model's family, pretrained as the quickstart's is."""
    source = common.world(**SETS[votes][2])
    name = NAMES.get(source.tastes, "PersonalLLM")
    config = common.small(f"synthetic {name}, Gemma", _methods(source.tastes != "dirichlet"), source)
    config.refresh_seen = recipe is not recipes.paper_config
    config.graph = common.graph(recipe, dim=128)
    heads = 1 if model == "gemma_2b" else config.pretrain.lm.num_heads
    config.pretrain.lm.update({"family": "gemma", "activation": "gelu_pytorch_tanh", "num_kv_heads": heads})
    return config


def _paper(model: str, hardware: str, votes: str, recipe: Callable[..., GCFConfig]) -> Any:
    """The paper's recipe."""
    dataset, source, _ = SETS[votes]
    config: Any = ConfigDict({"dataset": dataset, "seeds": (0,), "methods": _methods(votes in GROUPED)})
    mesh, accumulate, remat = STEPS[model, hardware]
    config.mesh = ConfigDict({**MESHES[hardware], **mesh})
    config.source = source()
    config.backbone = common.backbone(f"google/{model.replace('_', '-')}-it", max_length=1024, batch_size=32)
    config.backbone.dtype = "bfloat16"
    if "tokenizer" in config.source:
        config.source.tokenizer = config.backbone.name  # its tokens are those that count
    config.refresh_seen = False  # as in the paper
    config.graph = common.graph(recipe, dim=512)
    config.reward = common.reward(batch_size=128, eval_batch_size=32, num_steps=1500, lr=5e-5, holdout_fraction=0.0)
    config.reward.update({"accumulate": accumulate, "remat": remat})
    config.lore = ConfigDict({})
    config.deep = common.deep(users_per_batch=16, eval_batch_size=32, num_steps=1500, lr=5e-5)
    config.deep.accumulate = 2  # whole users go to a device: 8 chips take 8 users at a time
    config.deep.model.remat = "full"
    return config
