"""Experts on frozen features against NumPy, planted camps, and the head of the whole model that begins with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from copl_jax.io import checkpoint, peft
from copl_jax.reward import linear_experts, reward_model
from copl_jax.reward.linear_experts import LinearExperts
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from copl_jax.reward.training import HeadStart, begin_head
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.lm import backbone
from pref_jax.lm.pairs import text_states

GATE = GateConfig(hidden=5, top_k=2, noise=0.0, temperature=0.7)


def random_params(rng: np.random.Generator, dim: int = 4, embedding: int = 3) -> Any:
    sizes = {"num_gates": 3, "num_experts": 4, "dim": dim, "embedding_dim": embedding}
    own = linear_experts.init_own(GATE, jax.random.key(int(rng.integers(99))), **sizes)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), own)


def numpy_deviation(own: Any, user: np.ndarray) -> np.ndarray:
    """One user and gate after another, in float64."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), own)
    gates, found = own["gates"]["head"], 0.0
    for z, experts in enumerate(own["experts"]):
        hidden = np.maximum(user @ gates["hidden"]["kernel"][z] + gates["hidden"]["bias"][z], 0)
        logits = hidden @ gates["out"]["kernel"][z] + gates["out"]["bias"][z]
        likely = np.exp(logits / GATE.temperature) / np.exp(logits / GATE.temperature).sum()
        for k in np.argsort(-logits)[: GATE.top_k]:
            found = found + likely[k] * experts[k]
    return np.asarray(found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deviations_are_those_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    own, users = random_params(rng), rng.normal(size=(6, 3))
    found = linear_experts.deviations(GATE, own, jnp.asarray(users, jnp.float32))
    np.testing.assert_allclose(found, [numpy_deviation(own, user) for user in users], rtol=1e-4, atol=1e-5)


def test_users_that_come_as_numbers_get_that_expert_of_every_gate():
    own = random_params(np.random.default_rng(3))
    found = linear_experts.deviations(GATE, own, jnp.array([2, 0]))
    np.testing.assert_allclose(found, np.asarray(own["experts"]).sum(0)[[2, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_of_the_loss_are_those_of_the_formula(seed):
    """Along random directions, against differences in float64."""
    rng = np.random.default_rng(seed)
    params = {"shared": jnp.asarray(rng.normal(size=4), jnp.float32), "own": random_params(rng)}
    features, users = rng.normal(size=(9, 4)), rng.normal(size=(6, 3))
    batch = {"user": rng.integers(0, 6, 20), "chosen": rng.integers(0, 9, 20), "rejected": rng.integers(0, 9, 20)}
    frozen = {"features": jnp.asarray(features, jnp.float32), "users": jnp.asarray(users, jnp.float32)}
    frozen |= {"shrink": jnp.float32(0.3), "prior": jnp.float32(1 / (20 * 0.5))}
    loss: Any = linear_experts.make_loss(GATE)
    value, slopes = jax.value_and_grad(lambda p: loss(p, frozen, jax.tree.map(jnp.asarray, batch), None)[0])(params)

    def exact(tree: Any) -> float:
        own = [numpy_deviation(tree["own"], user) for user in users[batch["user"]]]
        margins = np.sum((tree["shared"] + own) * (features[batch["chosen"]] - features[batch["rejected"]]), axis=1)
        prior = 0.15 * np.sum(np.square(own), axis=1) + np.sum(tree["shared"] ** 2) / (2 * 20 * 0.5)
        return float(np.mean(np.logaddexp(0, -margins) + prior))

    base = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    assert float(value) == pytest.approx(exact(base), rel=1e-5)
    for _ in range(3):
        way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        ahead, behind = (exact(jax.tree.map(lambda a, b, s=s: a + s * b, base, way)) for s in (1e-6, -1e-6))
        slope = sum(
            np.sum(np.asarray(a) * b) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(way), strict=True)
        )
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=2e-3, abs=1e-4)


def camps(rng: np.random.Generator, users: int = 60, each: int = 12) -> tuple[np.ndarray, np.ndarray, Comparisons]:
    """Two camps of opposite tastes, told by the embeddings' sign."""
    features, side = rng.normal(size=(80, 6)).astype(np.float32), np.where(np.arange(users) % 2, 1.0, -1.0)
    embeddings = np.stack([side, np.zeros(users)], axis=1).astype(np.float32)
    user = np.repeat(np.arange(users), each)
    one, two = rng.integers(0, 80, (2, len(user)))
    first = side[user] * (features[one, 0] - features[two, 0]) > 0
    return features, embeddings, Comparisons(user, np.where(first, one, two), np.where(first, two, one))


@pytest.mark.parametrize("numbers", [False, True])
def test_camps_are_told_apart(tmp_path, numbers):
    features, embeddings, votes = camps(np.random.default_rng(5))
    users = np.where(embeddings[:, 0] > 0, 1, 0).astype(np.int32) if numbers else embeddings
    config = LinearExperts(num_gates=1 if numbers else 4, num_experts=2, steps=200, lr=5e-2, shrink=(1e-4, 1e-3))
    held = np.arange(len(votes.user)) % 6 == 0
    parts: Any = (votes.take(~held), votes.take(held))
    trained = linear_experts.fit_linear(config, features, users, *parts, folder=tmp_path, seed=0)
    assert {name: len(own) for name, own in trained.facts["validation_losses"].items()} == {"variances": 3, "shrink": 2}
    own = np.asarray(linear_experts.directions(config, trained.params, jnp.asarray(users)))
    margins = np.sum(own[votes.user] * (features[votes.chosen] - features[votes.rejected]), axis=1)
    assert np.mean(margins > 0) > 0.95
    again = linear_experts.fit_linear(config, features, users, *parts, folder=tmp_path, seed=0)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), trained.params, again.params)
    assert all(jax.tree.leaves(same)), "what was trained is taken up"


@pytest.mark.parametrize("routing", ["users", "groups"])
def test_the_whole_model_begins_as_the_experts_on_its_features(tmp_path, routing):
    """Rewards of the fresh model differ, for one user, by what they differ by on frozen features."""
    lm = tiny.llama()
    base = backbone.init(lm, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens, mask = jnp.asarray(rng.integers(1, 30, (12, 7)), jnp.int32), jnp.ones((12, 7), bool)
    features = np.asarray(text_states(lm, base, tokens, mask))
    table = rng.normal(size=(4, 3)).astype(np.float32) if routing == "users" else np.arange(4, dtype=np.int32) % 2
    pairs = Comparisons(rng.integers(0, 4, 40), *rng.permuted(np.tile(np.arange(12), (40, 1)), axis=1)[:, :2].T)
    sizes: Any = {"routing": routing, "head_gates": 2 if routing == "users" else 1}
    config = RewardConfig(lm=lm, gate=GateConfig(hidden=4, noise=0.0), **sizes)
    params = reward_model.init(config, jax.random.key(1), embedding_dim=3 if routing == "users" else 0)
    recipe = LinearExperts(steps=30, lr=5e-2, shrink=(0.0,))
    start = HeadStart(recipe, lambda: features, pairs, pairs.take(slice(0)))
    begun = begin_head(config, start, table, folder=tmp_path, seed=0)
    shapes = jax.tree.map(jnp.shape, {name: params[name] for name in begun})
    assert jax.tree.map(jnp.shape, begun) == shapes
    params |= begun
    for user in range(4):
        own = jnp.broadcast_to(jnp.asarray(table[user]), (12, *table.shape[1:]))
        found = np.asarray(reward_model.rewards(config, params, base, tokens, mask, own))
        head = reward_model.personal_head(config, params, own[:1])
        want = features @ np.asarray(head["w"])[0] + float(head["b"])
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
        assert np.std(found) > 1e-3
    batch = {"chosen": tokens[:4], "chosen_mask": mask[:4], "rejected": tokens[4:8], "rejected_mask": mask[4:8]}
    both = reward_model.pair_rewards(config, params, base, batch, jnp.asarray(table))
    alone = reward_model.rewards(config, params, base, tokens[:4], mask[:4], jnp.asarray(table))
    np.testing.assert_allclose(both[:, 0], alone, rtol=1e-4, atol=1e-5)


def test_a_model_with_experts_in_its_head_is_kept_and_exported(tmp_path):
    lm = tiny.llama()
    config = RewardConfig(lm=lm, gate=GateConfig(hidden=4), head_gates=2)
    params = reward_model.init(config, jax.random.key(1), embedding_dim=3)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    checkpoint.save(tmp_path / "kept", config, params)
    found = checkpoint.load(tmp_path / "kept", lm)
    assert found.config == config
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), dict(found.params), params)
    assert all(jax.tree.leaves(same))
    user = jnp.asarray(rng.normal(size=3), jnp.float32)
    peft.save_peft(tmp_path / "lora", config, params, user)
    tensors = safetensors.numpy.load_file(tmp_path / "lora" / peft.TENSORS)
    own = params["head"]["w"] + linear_experts.deviations(config.head_gate, params["head_experts"], user[None])[0]
    np.testing.assert_allclose(tensors["base_model.model.score.weight"][0], own, rtol=1e-5, atol=1e-6)


def test_wrong_sizes_are_told():
    with pytest.raises(UserError, match="whole numbers from 1"):
        LinearExperts(num_gates=0)
    with pytest.raises(UserError, match="rising tuple"):
        LinearExperts(shrink=(0.1, 0.01))
    with pytest.raises(UserError, match="above 0"):
        LinearExperts(variances=(0.0, 1.0))
    with pytest.raises(UserError, match="do not balance"):
        LinearExperts(gate=GateConfig(balance="bias"))
    with pytest.raises(UserError, match="head_gates is -1"):
        RewardConfig(lm=tiny.llama(), head_gates=-1)
