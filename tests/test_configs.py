"""Every config loads in every variant, and each of its sections fits what it configures."""

import dataclasses
import importlib
import inspect
import itertools
import math
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import Mesh

import configs
from configs import (
    common,
    compare_small,
    copl,
    jester_warm,
    lore_personalllm,
    lore_planted,
    lore_prism,
    lore_tldr,
    synthetic,
    vote_kinds,
)
from copl_jax.graph.settings import GCFConfig
from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from experiments import planted
from experiments.methods import METHODS
from experiments.runner.cli import freeze
from experiments.studies import lore_studies
from experiments.studies.planted_world import PlantedConfig
from lore_jax.deep import DeepConfig
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.settings import PublishedConfig
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.data.sources import jester, personalllm, prism, tldr, ukp_convarg, ultrafeedback
from pref_jax.data.sources.synthetic.world import WorldConfig
from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm import backbone, hf_config, sharding_rules
from pref_jax.lm.config import LMConfig
from pref_jax.mesh import make_mesh, tree_shardings
from pref_jax.train.state import OptimizerConfig

MODULES = [
    importlib.import_module(f"configs.{found.name}")
    for found in pkgutil.iter_modules(configs.__path__)
    if found.name != "common"
]


def _variants(module) -> list[str]:
    """Every combination of one word, or none, of each of the alternatives."""
    choices = itertools.product(*(("", *words) for words in module.VARIANTS))
    return [",".join(word for word in choice if word) for choice in choices]


# These have no texts and no transformer.
CASES = [
    (module, variant)
    for module in MODULES
    if module not in (jester_warm, lore_planted, vote_kinds)
    for variant in _variants(module)
]


def _each(config: Any) -> list[Any]:
    """The configs of single data sets: that of each where there are several."""
    if "datasets" not in config:
        return [config]
    return [config.datasets[name].copy_and_resolve_references() for name in config.datasets]


@pytest.mark.parametrize(("module", "variant"), CASES)
def test_sections_fit(module, variant):
    for config in _each(module.get_config(variant)):
        _fits(config)


def _fits(config: Any) -> None:
    assert set(config.methods) <= set(METHODS)
    freeze(GCFConfig, config.graph, "graph")
    freeze(GateConfig, config.reward.gate, "reward.gate")
    freeze(ExpertsConfig, config.reward.experts, "reward.experts")
    freeze(OptimizerConfig, config.reward.optimizer, "reward.optimizer")
    freeze(LoReConfig, config.lore, "lore")
    freeze(BaselinesConfig, config.get("baselines", {}), "baselines")
    freeze(DeepConfig, config.deep.model, "deep.model", lm=tiny.llama())
    freeze(OptimizerConfig, config.deep.optimizer, "deep.optimizer")
    assert {config.reward.remat, config.deep.model.remat} <= set(backbone.REMAT)
    assert set(config.backbone) == set(common.backbone("", max_length=1, batch_size=1))
    assert config.source.name in READERS
    if config.source.name in PUBLIC:
        own = config.source.to_dict()
        assert PUBLIC[own.pop("name")] == sorted(own)
    if config.source.name == "world":
        options = config.source.to_dict()
        options.pop("name")
        freeze(WorldConfig, options, "source")
        lm = freeze(LMConfig, config.pretrain.lm, "pretrain.lm")
        assert config.backbone.max_length <= lm.max_positions
        freeze(OptimizerConfig, config.pretrain.optimizer, "pretrain.optimizer")


# The options of each reader of a public set, in order of names.
PUBLIC = {
    module.__name__.rsplit(".", 1)[-1]: sorted(set(inspect.signature(module.read).parameters) - {"seed"})
    for module in (ultrafeedback, tldr, personalllm, prism, ukp_convarg, jester)
}
READERS = {"world", "crowdrag", "jsonl", *PUBLIC}
STUDIES = [(module, variant) for module, variant in CASES if module in (lore_personalllm, lore_prism, lore_tldr)]


@pytest.mark.parametrize(("module", "variant"), STUDIES)
def test_sections_of_studies_fit(module, variant):
    config: Any = module.get_config(variant)
    published = freeze(PublishedConfig, config.published, "published")
    assert published.recipe == ("anchored" if module is lore_prism else "reference")
    studies = lore_studies.read(config)
    assert studies is not None
    assert 1 in studies.ranks
    # On a world the answers of an unseen user are known: all points of the curve can be measured.
    if config.source.name == "world":
        assert max(studies.shots) <= config.source.pairs_per_user


def test_lore_settings_are_the_papers():
    """Those of the LoRe paper, arXiv 2504.14439."""
    for module, name, rank in ((lore_personalllm, "personalllm", 10), (lore_tldr, "tldr", 5), (lore_prism, "prism", 5)):
        config: Any = module.get_config("h200")
        assert (config.source.name, config.published.rank) == (name, rank)
        assert config.source.get("rule", "lore") == "lore"
        assert config.backbone.name == "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"
        assert config.published.steps == 0  # as published
        assert module.get_config("") == module.get_config("cpu")
    halves: list[Any] = [m.get_config("h200").source for m in (lore_tldr, lore_prism)]
    assert [source.unseen_fraction for source in halves] == [0.5, 0.2]
    worlds: dict[Any, Any] = {m: m.get_config("cpu").source for m in (lore_personalllm, lore_tldr, lore_prism)}
    assert (worlds[lore_personalllm].tastes, worlds[lore_personalllm].pairs_per_user) == ("dirichlet", 48)
    assert worlds[lore_tldr].seen_users == worlds[lore_tldr].unseen_users
    assert worlds[lore_prism].protocol == "AVG"
    assert worlds[lore_prism].seen_users == 4 * worlds[lore_prism].unseen_users


@pytest.mark.parametrize("variant", _variants(lore_planted))
def test_planted_sections_fit(variant):
    config: Any = lore_planted.get_config(variant)
    assert set(config.methods) == set(planted.METHODS) == set(planted.MEANINGS)
    for alpha, pairs, wrong in itertools.product(config.alphas, config.pairs, config.wrongs):
        freeze(PlantedConfig, config.world, "world", alpha=alpha, pairs=pairs, wrong=wrong)


@pytest.mark.parametrize(("module", "variant"), CASES)
def test_batches_and_meshes_agree(module, variant):
    for config in _each(module.get_config(variant)):
        _batches_agree(config)


def _batches_agree(config: Any) -> None:
    sizes = config.mesh.to_dict()
    shards = abs(sizes["data"]) * sizes["fsdp"]  # -1 takes the devices there are, one at least
    micro, rest = divmod(config.reward.batch_size, config.reward.accumulate)
    users, left = divmod(config.deep.users_per_batch, config.deep.accumulate)
    assert (rest, left) == (0, 0)
    scored = (config.reward.eval_batch_size, config.deep.eval_batch_size, config.backbone.batch_size)
    assert [size % shards for size in (micro, users, *scored)] == [0] * 5


@pytest.mark.parametrize("module", MODULES)
def test_a_config_says_how_to_launch_it_and_knows_its_variants(module):
    words = itertools.chain(*module.VARIANTS)
    assert all(word in module.__doc__ for word in ("command", "variants", "hardware", *words))
    with pytest.raises(UserError, match="variant 'tinny' is unknown"):
        module.get_config("tinny")


@pytest.mark.parametrize(
    ("variant", "want"), [("", ("", "")), ("b", ("b", "")), ("c, a", ("a", "c")), ("a,c", ("a", "c"))]
)
def test_words_of_a_variant_come_in_any_order(variant, want):
    assert common.choose(variant, ("a", "b"), ("c",)) == want


@pytest.mark.parametrize("variant", ["a,b", "a,a", "a,", ",", "d", "a,c,d"])
def test_words_that_exclude_each_other_or_are_unknown_are_told(variant):
    with pytest.raises(UserError, match=r"known: .*a or b; c"):
        common.choose(variant, ("a", "b"), ("c",))


def test_synthetic_settings_are_the_papers():
    """Those of the CoPL paper, arXiv 2503.01658."""
    for name in synthetic.SETTINGS:
        source: Any = synthetic.get_config(name).source
        assert source.pairs_per_user == (8 if name.startswith("uf_p_2") else 16)
        assert source.protocol == ("AVG" if name.endswith("avg") else "ALL")
        assert source.tastes == ("dirichlet" if name == "personalllm" else name[:6])
        assert (source.seen_users, source.unseen_users) == (500, 100)
    config: Any = synthetic.get_config("personalllm")
    assert config.source.dirichlet_alpha == 0.1
    assert "group oracle" not in config.methods


# Sizes as in config.json of the models on the hub; what is not said here is alike in both.
_GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "head_dim": 256,
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
}
GEMMA: dict[str, dict[str, Any]] = {
    "gemma_2b": {
        "hidden_size": 2048,
        "intermediate_size": 16_384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "gemma_7b": {
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
}
RESULTS = Path(__file__).parents[1] / "results"
FULL_SIZE = [f"{model},{hardware}" for model in GEMMA for hardware in copl.MESHES]


def _bytes(shapes: Any, mesh: Mesh) -> int:
    """Bytes on each device of parameters that are cut over the mesh by the sharding table."""
    places = tree_shardings(mesh, sharding_rules.specs(shapes, mesh))
    own = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, places
    )
    return sum(jax.tree.leaves(own))


@pytest.mark.parametrize("variant", FULL_SIZE)
def test_full_size_models_need_the_memory_that_the_docstring_says(variant):
    config: Any = copl.get_config(variant)
    plan = read_json(RESULTS / "plan" / variant.replace(",", "_") / "plan.json")
    (step,) = (one for one in plan["programs"] if one["program"] == "reward step")
    assert step["fits"]
    assert step["memory_share"] < 0.9
    sizes, reward = config.mesh.to_dict(), config.reward
    assert (plan["mesh"], plan["accumulate"], plan["remat"]) == (sizes, reward.accumulate, reward.remat)
    said = next(line.split() for line in (copl.__doc__ or "").splitlines() if line.split()[:1] == [variant])
    gigabytes, seconds = f"{step['peak_bytes'] / 1e9:.1f}", f"{step['estimate_seconds']:.1f}"
    mesh = [f"{name}={sizes[name]}" for name in ("data", "fsdp")]
    assert said[1:] == [*mesh, str(reward.accumulate), reward.remat, gigabytes, "GB", seconds, "s"]


@pytest.mark.parametrize("variant", FULL_SIZE)
def test_plans_hold_the_parameters_that_are_counted_by_hand(variant):
    config: Any = copl.get_config(variant)
    lm = dataclasses.replace(hf_config.read({**_GEMMA, **GEMMA[variant.split(",")[0]]}), lm_head=False)
    assert config.backbone.max_length <= lm.max_positions
    sizes = config.mesh.to_dict()
    mesh = make_mesh(**sizes, devices=jax.devices()[: math.prod(sizes.values())])
    weights = _bytes(backbone.shapes(lm, jnp.dtype(config.backbone.dtype)), mesh)
    model = RewardConfig(lm=lm, mixture=freeze(ExpertsConfig, config.reward.experts, "reward.experts"))
    params = jax.eval_shape(lambda: reward_model.init(model, jax.random.key(0), embedding_dim=config.graph.dim))
    # Parameters and two moments; gradients are made on the way.
    trained = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    plan = read_json(RESULTS / "plan" / variant.replace(",", "_") / "plan.json")
    (step,) = (one for one in plan["programs"] if one["program"] == "reward step")
    users = 4 * plan["sizes"]["users"] * config.graph.dim
    assert step["argument_bytes"] == pytest.approx(weights + trained + users, rel=0.01)


def test_models_on_cpu_are_of_the_same_family():
    every: list[Any] = [copl.get_config(f"{model},cpu") for model in copl.MODELS]
    two, seven = (config.pretrain.lm for config in every)
    assert (two.family, two.num_kv_heads) == ("gemma", 1) == (seven.family, seven.num_kv_heads // seven.num_heads)
    assert copl.get_config("cpu") == copl.get_config("") == copl.get_config("gemma_2b,cpu")


@pytest.mark.parametrize(
    ("votes", "name", "pairs"), [("uf_p_2", "ultrafeedback", 8), ("uf_p_4", "ultrafeedback", 16), ("tldr", "tldr", 8)]
)
def test_the_papers_sets(votes, name, pairs):
    """arXiv 2503.01658; the number of pairs, where the config says none, is the reader's own for so many attributes."""
    config: Any = copl.get_config(f"h200,{votes}")
    assert (config.source.name, config.source.seen_users, config.source.unseen_users) == (name, 10_000, 100)
    assert "group oracle" in config.methods
    assert config.source.pairs_per_user in (None, pairs)
    assert config.source.get("attributes", 2) == (4 if pairs == 16 else 2)
    small: Any = copl.get_config(f"cpu,{votes}").source
    assert small.pairs_per_user == pairs


def test_the_papers_recipe():
    """Those of the CoPL paper, arXiv 2503.01658."""
    config: Any = copl.get_config("gemma_2b")
    graph: Any = copl.get_config("gemma_2b,reference").graph
    assert (graph.layer, graph.dim, graph.num_layers) == ("gcf", 512, 4)
    assert (graph.learning_rate, graph.batch_size, graph.epochs) == (1e-4, 1024, 100)
    experts = freeze(ExpertsConfig, config.reward.experts, "reward.experts")
    assert (experts.num_experts, experts.rank, experts.scale, experts.dropout) == (8, 8, 2.0, 0.1)
    assert experts.targets == ("q_proj", "v_proj")
    optimizer = config.reward.optimizer
    assert (optimizer.lr, optimizer.num_steps, optimizer.weight_decay) == (5e-5, 1500, 1e-3)
    assert (optimizer.warmup_fraction, config.reward.batch_size, config.backbone.max_length) == (0.03, 128, 1024)
    assert (config.backbone.name, config.backbone.dtype) == ("google/gemma-2b-it", "bfloat16")


def test_the_table_lists_every_method_in_its_order():
    assert list(compare_small.METHODS) == list(METHODS)


def test_importing_a_config_imports_no_jax():
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    command = [sys.executable, "-c", code, *(module.__name__ for module in MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(configs.__path__[0]).parent)
    loaded = set(done.stdout.split())
    assert {module.__name__ for module in MODULES} <= loaded
    assert not {name for name in loaded if name.split(".")[0] in ("jax", "jaxlib", "flax", "experiments")}


def test_the_table_says_of_every_method_that_it_is_in_or_why_not():
    for own in _each(compare_small.get_config()):
        absent = {name for line in own.left_out for name in line.split(": ")[0].split(", ")}
        assert absent == set(METHODS) - set(own.methods)


def test_whatever_trains_the_transformer_for_the_table_gets_as_many_pairs():
    for own in _each(compare_small.get_config()):
        if own.source.name == "world":
            assert own.deep.users_per_batch * own.deep.pairs_per_user == own.reward.batch_size
            assert own.deep.optimizer.num_steps == own.reward.optimizer.num_steps
