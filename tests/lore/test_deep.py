"""Deep LoRe's loss and gradients against SciPy in float64, what must not leak, devices, degenerate users, stores."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.optimize import minimize

from lore_jax import deep
from lore_jax.deep import DeepConfig
from lore_jax.weights.objective import Prior
from pref_jax.errors import UserError
from pref_jax.lm import backbone, lora, parameter_files, sharding_rules
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.pairs import pair_states
from pref_jax.mesh import make_mesh, put_batch, replicated, tree_shardings
from pref_jax.train.loop import jit_step
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer, optimizer_by_group

LM = tiny.llama()
CONFIG = DeepConfig(lm=LM, basis=3, rank=2, targets=("v_proj", "down_proj"))
RIDGE = dataclasses.replace(CONFIG, solver="ridge")


# --- the reference: NumPy and SciPy, float64, one user after another ---


def softplus(x):
    return np.logaddexp(0, x)


def solved(solver, z, mean, precision):
    """Weights [K] from pairs z [m K]."""

    def value(w):
        loss = 0.5 * np.sum((1 - z @ w) ** 2) if solver == "ridge" else softplus(-z @ w).sum()
        return loss + 0.5 * np.sum(precision * (w - mean) ** 2)

    def slope(w):
        force = (1 - z @ w) if solver == "ridge" else np.exp(-softplus(z @ w))
        return precision * (w - mean) - z.T @ force

    def curvature(w):
        bend = np.ones(len(z)) if solver == "ridge" else np.exp(-softplus(z @ w) - softplus(-z @ w))
        return np.diag(precision) + (z * bend[:, None]).T @ z

    return minimize(value, mean, jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-11}).x


def expected_loss(solver, states, mask, support, heads, mean, log_precision):
    """The formula at the head of lore_jax/deep.py, from pooled states [U n 2 D]."""
    z = (states[:, :, 0] - states[:, :, 1]) @ heads
    total = 0.0
    for u in range(len(z)):
        for own in support[u]:
            w = solved(solver, z[u][own], mean, np.exp(log_precision))
            query = mask[u] & ~own
            total += softplus(-z[u][query] @ w).mean() if query.any() else 0.0
    return total / support.shape[0] / support.shape[1]


def differences_of(function, argument, step=1e-5):
    """Gradient by central differences."""
    found = np.zeros(argument.shape)
    for place in np.ndindex(argument.shape):
        lean = np.zeros(argument.shape)
        lean[place] = step
        found[place] = (function(argument + lean) - function(argument - lean)) / (2 * step)
    return found


def example(seed=0):
    """States, masks, heads and prior of five users: full, ragged, one pair, all pairs alike, padding only."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(5, 4, 2, 4))
    states[3] = states[3, :1]
    mask = np.arange(4)[None] < np.array([4, 3, 1, 4, 0])[:, None]
    support = np.zeros((5, 2, 4), bool)
    support[0, 0, :3] = support[0, 1, 1] = True
    support[1, 0, [0, 2]] = True
    support[3, :, 2:] = True
    heads, mean, log_precision = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=3)
    return states, mask, support, heads, mean, log_precision


@pytest.mark.parametrize("config", [CONFIG, RIDGE], ids=lambda config: config.solver)
def test_loss_and_all_gradients_equal_scipys(config):
    states, mask, support, *rest = example()
    reference = functools.partial(expected_loss, config.solver)
    with jax.enable_x64(True):

        def loss(states, heads, mean, log_precision):
            z = (states[:, :, 0] - states[:, :, 1]) @ heads
            belief = Prior(mean, jnp.diag(jnp.exp(log_precision)))
            return deep.query_loss(config, z, jnp.asarray(mask), jnp.asarray(support), belief)[0]

        arguments = [jnp.asarray(x) for x in (states, *rest)]
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(value, reference(states, mask, support, *rest), rtol=1e-9)
    whole = [states, *rest]
    for number, gradient in enumerate(gradients):

        def at(x, number=number):
            states, *rest = [*whole[:number], x, *whole[number + 1 :]]
            return reference(states, mask, support, *rest)

        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(gradient, differences_of(at, whole[number]), rtol=1e-5, atol=1e-8)


# --- on a transformer ---


def batch_of(seed=0, users=4, pairs=3, splits=2, length=7):
    """Texts, some users ragged; the last one has a single pair."""
    rng = np.random.default_rng(seed)
    counts = np.append(rng.integers(2, pairs + 1, users - 1), 1)
    mask = np.arange(pairs)[None] < counts[:, None]
    size = rng.integers(0, counts[:, None], (users, splits))
    batch: dict[str, Any] = {"mask": mask, "support": mask[:, None] & (np.arange(pairs) < size[..., None])}
    for side in ("chosen", "rejected"):
        batch[side] = rng.integers(0, LM.vocab_size, (users, pairs, length)).astype(np.int32)
        batch[f"{side}_mask"] = np.arange(length) < rng.integers(1, length + 1, (users, pairs, 1))
    return batch


def working(config=CONFIG, seed=0):
    """Parameters of which all matter."""
    rng = np.random.default_rng(seed)
    params = deep.init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), params)


def prior_of(params):
    return (np.asarray(params["prior"][name], np.float64) for name in ("mean", "log_precision"))


@functools.cache
def base():
    return jax.jit(lambda: backbone.init(LM, jax.random.key(1)))()


@functools.cache
def graded(config):
    return jax.jit(jax.value_and_grad(deep.make_loss(config), has_aux=True))


@pytest.mark.parametrize("config", [CONFIG, RIDGE], ids=lambda config: config.solver)
def test_a_steps_gradients_go_through_the_solver_into_the_transformer(config):
    params, batch = working(config), batch_of()
    batch["support"][0, 0] = [True, False, False]
    (value, metrics), gradients = graded(config)(params, {"base": base()}, batch, None)
    sides = ("chosen", "rejected", "chosen_mask", "rejected_mask")
    rows = {side: jnp.asarray(batch[side].reshape(12, -1)) for side in sides}

    @jax.jit
    def states_of(adapters):
        return pair_states(LM, base(), rows, adapters, lora.adapter_fn(LoRAConfig(rank=2, alpha=4.0, dropout=0.0)))

    states, pull = jax.vjp(states_of, params["adapters"])
    states = np.asarray(states, np.float64).reshape(4, 3, 2, -1)
    heads = np.asarray(params["heads"], np.float64)
    mean, log_precision = prior_of(params)

    def reference(states):
        return expected_loss(config.solver, states, batch["mask"], batch["support"], heads, mean, log_precision)

    np.testing.assert_allclose(value, reference(states), rtol=1e-5)
    (expected,) = pull(jnp.asarray(differences_of(reference, states).reshape(12, 2, -1), jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6), gradients["adapters"], expected)
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(gradients))
    assert 0 <= metrics["accuracy"] <= 1


def test_a_fresh_model_has_everybodys_reward_in_its_first_head():
    params = deep.init(CONFIG, jax.random.key(0))
    batch = batch_of()
    batch["support"][:] = False
    (value, metrics), _ = graded(CONFIG)(params, {"base": base()}, batch, None)
    np.testing.assert_allclose(value, metrics["shared_loss"], rtol=1e-6)
    text = batch["chosen"][:, 0], batch["chosen_mask"][:, 0]
    found = jax.jit(deep.text_rewards, static_argnums=0)(CONFIG, params, base(), *text)
    tokens, mask = map(jnp.asarray, text)
    hidden = backbone.hidden_states(LM, base(), tokens, mask)
    pooled = backbone.pool(LM, hidden, mask)
    np.testing.assert_allclose(found, pooled @ params["heads"], rtol=1e-5, atol=1e-6)
    given = deep.init(CONFIG, jax.random.key(0), jnp.arange(16, dtype=jnp.bfloat16))["heads"]
    np.testing.assert_array_equal(given[:, 0], np.arange(16))
    np.testing.assert_array_equal(given[:, 1:], params["heads"][:, 1:])
    assert jax.tree.map(jnp.shape, params["prior"]) == {"mean": (3,), "log_precision": (3,)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_weights_know_nothing_of_query_pairs_and_padding():
    states, _, support, heads, mean, log_precision = example(1)
    z = jnp.asarray((states[:, :, 0] - states[:, :, 1]) @ heads, jnp.float32)
    belief = Prior(jnp.asarray(mean, jnp.float32), jnp.diag(jnp.exp(jnp.asarray(log_precision, jnp.float32))))
    for config in (CONFIG, RIDGE):
        weights = functools.partial(deep.split_weights, config)
        for split in range(2):
            own = jnp.asarray(support[:, split : split + 1])
            before = weights(z, own, belief)
            hidden = jnp.where(own[:, 0, :, None], z, jnp.nan)
            np.testing.assert_array_equal(weights(hidden, own, belief), before)
            slope = jax.grad(lambda z, weights=weights, own=own: jnp.sum(weights(z, own, belief) ** 2))(z)
            moves = np.abs(slope).max(-1) > 0
            np.testing.assert_array_equal(moves, own[:, 0])
            # Without a support: the prior's mean, to the bit.
            empty = ~support[:, split].any(1)
            assert empty.any()
            np.testing.assert_array_equal(before[empty, 0], np.tile(np.float32(mean), (int(empty.sum()), 1)))


def test_padding_counts_for_nothing():
    params, batch = working(), batch_of(seed=2)
    noisy = {name: leaf.copy() for name, leaf in batch.items()}
    noisy["chosen"][~batch["mask"]] = 7
    noisy["rejected_mask"][~batch["mask"]] = False
    both = [graded(CONFIG)(params, {"base": base()}, one, None) for one in (batch, noisy)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *both)


def test_rows_that_texts_share_give_the_same():
    """Both texts of a pair begin with the same two tokens."""
    batch = batch_of(seed=3)
    batch["rejected"][..., :2] = batch["chosen"][..., :2]
    shared = {"mask": batch["mask"], "support": batch["support"]}
    lengths = [np.maximum(batch[f"{side}_mask"].sum(-1), 3) for side in ("chosen", "rejected")]
    for side, length in zip(("chosen", "rejected"), lengths, strict=True):
        batch[f"{side}_mask"] = np.arange(7) < length[..., None]
    column = np.arange(12)
    middle, end = lengths[0][..., None], (lengths[0] + lengths[1] - 2)[..., None]
    shared["parts"] = np.select([column < 2, column < middle, column < end], [1, 2, 3]).astype(np.int32)
    first = np.take_along_axis(batch["chosen"], np.minimum(column, 6)[None, None], -1)
    second = np.take_along_axis(batch["rejected"], np.clip(column - middle + 2, 0, 6), -1)
    shared["tokens"] = np.where(shared["parts"] == 3, second, first).astype(np.int32)
    both = [graded(CONFIG)(working(), {"base": base()}, one, None) for one in (batch, shared)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *both)


def test_a_bfloat16_base_trains_float32_parameters():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base())
    params, batch = working(), batch_of(seed=4)
    (value, _), gradients = graded(CONFIG)(params, {"base": half}, batch, None)
    (exact, _), wanted = graded(CONFIG)(params, {"base": base()}, batch, None)
    np.testing.assert_allclose(value, exact, rtol=0.1)
    for found, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert found.dtype == jnp.float32
        cosine = np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine > 0.9


def trained(steps=4, accumulate=1, **axes):
    """Losses and parameters after some steps, the transformer cut over the mesh."""
    axes = axes or {"data": 1, "fsdp": 1, "tensor": 1}
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    frozen = {"base": jax.device_put(base(), tree_shardings(mesh, sharding_rules.specs(base(), mesh)))}
    transform = optimizer(OptimizerConfig(lr=1e-2, num_steps=steps, clip=1.0))
    state = init_state(jax.device_put(working(), replicated(mesh)), transform, 3)
    step = jit_step(make_step(deep.make_loss(CONFIG), transform, accumulate=accumulate), state, frozen, mesh)
    losses = []
    with jax.set_mesh(mesh):
        for seed in range(steps):
            state, metrics = step(state, frozen, put_batch(batch_of(seed, users=16), mesh))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def alone():
    losses, params = trained()
    assert len(set(losses)) == 4
    return losses, params


@pytest.mark.parametrize(
    "how",
    [{"data": 8, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}, {"accumulate": 4}],
    ids=["data", "all axes", "micro-batches"],
)
def test_devices_and_micro_batches_change_nothing(alone, how):
    losses, params = trained(**how)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5, atol=1e-6)
    # AdamW's first steps turn rounding into steps where a gradient is next to zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-4), params, alone[1])


def test_the_prior_has_a_rate_of_its_own_and_no_decay():
    params = working()
    recipe = OptimizerConfig(lr=1e-3, num_steps=10, weight_decay=0.5)
    transform = optimizer_by_group(recipe, ("prior",), lr_mult=7.0)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates: Any = transform.update(gradients, transform.init(params), params)[0]
    jax.tree.map(lambda x: np.testing.assert_allclose(x, -7e-3, rtol=1e-4), updates["prior"])
    np.testing.assert_allclose(updates["heads"], -1e-3 * (1 + 0.5 * params["heads"]), rtol=1e-4)


# --- after training ---


@pytest.mark.parametrize("config", [CONFIG, RIDGE], ids=lambda config: config.solver)
def test_users_weights_equal_scipys_whoever_they_are(config):
    rng = np.random.default_rng(5)
    params = working(config)
    rewards = rng.normal(size=(20, 3)).astype(np.float32)
    user = rng.permutation(np.repeat([0, 1, 2, 4], [5, 1, 8, 2]))
    chosen = rng.integers(0, 20, 16)
    rejected = (chosen + rng.integers(1, 20, 16)) % 20
    user[:2], chosen[:2], rejected[:2] = 2, 7, 3  # twice the same
    votes = [jnp.asarray(x, jnp.int32) for x in (user, chosen, rejected)]
    found = deep.user_weights(config, params, jnp.asarray(rewards), votes[0], votes[1], votes[2], 6)
    mean, log_precision = prior_of(params)
    z = (rewards[chosen] - rewards[rejected]).astype(np.float64)
    for u in range(6):
        expected = solved(config.solver, z[user == u], mean, np.exp(log_precision))
        np.testing.assert_allclose(found.weights[u], expected, rtol=1e-4, atol=1e-5)
    for u in (3, 5):
        np.testing.assert_array_equal(found.weights[u], params["prior"]["mean"])
        np.testing.assert_allclose(found.covariance[u], np.diag(np.exp(-log_precision)), rtol=1e-5, atol=1e-7)
    none = jnp.zeros(0, jnp.int32)
    nobody = deep.user_weights(config, params, jnp.asarray(rewards), none, none, none, 2)
    np.testing.assert_array_equal(nobody.weights, np.tile(params["prior"]["mean"], (2, 1)))


def ending(rng, likes, users, pairs):
    """Even users prefer texts that end in 1, odd ones those that end in 2."""
    tokens = rng.integers(3, 32, (2, users, pairs, 5)).astype(np.int32)
    tokens[0, :, :, -1], tokens[1, :, :, -1] = 1 + likes[:, None], 2 - likes[:, None]
    full = np.ones((users, pairs, 5), bool)
    return {"chosen": tokens[0], "rejected": tokens[1], "chosen_mask": full, "rejected_mask": full}


def test_learns_opposite_tastes_of_users_it_never_meets_again():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(CONFIG, basis=2, targets=("v_proj", "o_proj"))
    adam = optimizer(OptimizerConfig(lr=2e-2, num_steps=80, warmup_fraction=0.1, clip=1.0))
    step = jax.jit(make_step(deep.make_loss(config), adam))
    state = init_state(deep.init(config, jax.random.key(0)), adam, 0)
    metrics: Any = {}
    for _ in range(80):
        batch = ending(rng, rng.integers(0, 2, 8), 8, 4)
        support = np.zeros((8, 2, 4), bool)
        support[:, 0, :2] = support[:, 1, 1:] = True
        batch |= {"mask": np.ones((8, 4), bool), "support": support}
        state, metrics = step(state, {"base": base()}, batch)
    assert metrics["accuracy"] > 0.95
    assert metrics["shared_accuracy"] < 0.75
    likes = np.array([0, 1, 1])
    texts = ending(rng, likes, 3, 6)
    reads = jax.jit(deep.text_rewards, static_argnums=0)
    rewards = [
        reads(config, state.params, base(), *(texts[name].reshape(18, 5) for name in (side, f"{side}_mask")))
        for side in ("chosen", "rejected")
    ]
    both = jnp.concatenate(rewards)
    known = np.array([0, 1, 6, 7, 12, 13])
    user, chosen, rejected = (jnp.asarray(x, jnp.int32) for x in (known // 6, known, known + 18))
    weights = deep.user_weights(config, state.params, both, user, chosen, rejected, 3).weights
    margins = jnp.einsum("upk,uk->up", (rewards[0] - rewards[1]).reshape(3, 6, 2), weights)
    assert (margins[:, 2:] > 0).all()


# --- stores and mistakes ---


def test_what_comes_back_is_the_same_in_every_bit(tmp_path):
    params = working()
    for _ in range(2):  # the second one takes the first one's place
        deep.save(tmp_path / "a", CONFIG, params)
    config, found = deep.load(tmp_path / "a", LM)
    assert config == CONFIG
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.view(jnp.int32), b.view(jnp.int32)), found, params)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {parameter_files.TENSORS, parameter_files.CONFIG}


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(UserError, match=r"heads: is float32 \[16, 2\], where float32 \[16, 3\]"):
        deep.save(tmp_path / "a", CONFIG, deep.init(dataclasses.replace(CONFIG, basis=2), jax.random.key(0)))
    assert not list(tmp_path.iterdir())
    deep.save(tmp_path / "a", CONFIG, working())
    with pytest.raises(UserError, match=r"adapters/down_proj/a: is float32 \[2, 24, 2\], where .*\[3, 24, 2\]"):
        deep.load(tmp_path / "a", tiny.llama(num_layers=3))
    path = tmp_path / "a" / parameter_files.CONFIG
    text = path.read_text()
    path.write_text(text.replace('"basis": 3', '"basis": "3"').replace('"remat"', '"remate"'))
    with pytest.raises(UserError, match="3 faults") as error:
        deep.load(tmp_path / "a", LM)
    assert all(word in str(error.value) for word in ("model.basis: is '3'", "remate: unknown", "remat: is missing"))
    path.write_text(text)
    file = tmp_path / "a" / parameter_files.TENSORS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut short or damaged"):
        deep.load(tmp_path / "a", LM)


def test_mistakes_are_told_together():
    wrong: Any = {"basis": 0, "solver": "newton", "targets": ("q", "v_proj")}
    with pytest.raises(UserError, match="3 faults") as error:
        DeepConfig(lm=LM, **wrong)
    assert all(word in str(error.value) for word in ("basis, rank", "'newton'", "down_proj"))
