"""Personal baselines: each formula against NumPy in float64, what they must not depend on, and planted camps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from pref_jax.baselines import head_training, on_features, vpl
from pref_jax.baselines.gpo import GPO
from pref_jax.baselines.head_training import States
from pref_jax.baselines.heads import Known
from pref_jax.baselines.hyre import HyRe
from pref_jax.baselines.i2e import I2E
from pref_jax.baselines.mrm import MRM
from pref_jax.baselines.p_ttt import PTTT, PTTTSolved
from pref_jax.baselines.pal import PALA, PALB
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.spl import SPL
from pref_jax.baselines.vpl import VPL
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError

D, U, B, N, SIDES = 5, 6, 4, 3, 2
HEADS = {
    "I2E": I2E(hidden=7, size=3, shrink=0.1),
    "VPL": VPL(hidden=6, kl_weight=0.3),
    "PAL-A": PALA(hidden=7, size=4, prototypes=3, shrink=0.2),
    "PAL-B": PALB(hidden=7, size=4, prototypes=3, shrink=0.2),
    "GPO": GPO(hidden=8, heads=2, blocks=2),
    "SPL": SPL(hidden=6, kl_weight=0.3, mirror=0.7),
    "MRM": MRM(hidden=7, basis=3, inner_lr=0.4, gamma=0.3),
    "HyRe": HyRe(hidden=7, heads=4),
    "P-TTT": PTTT(hidden=7),
    "P-TTT (solved)": PTTTSolved(hidden=7),
}
each_head = pytest.mark.parametrize("name", HEADS)


def scene(name: str, seed: int = 0) -> tuple[Any, Any, Known, Any, Any]:
    """Head, parameters away from their start, what is known of B users (one of them nothing), texts, prompts."""
    head, rng = HEADS[name], np.random.default_rng(seed)
    fresh = head.init(jax.random.key(seed), D, U)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh)
    mask = np.arange(N)[None] < np.array([N, 2, 1, 0])[:, None]
    chosen, rejected = rng.normal(size=(2, B, N, D)).astype(np.float32)
    own = params["table"][np.array([4, 0, 2, 1])] if "table" in params else None
    known = Known(own, jnp.asarray(chosen), jnp.asarray(rejected), jnp.asarray(mask))
    h, prompt = rng.normal(size=(B, SIDES, D)), rng.normal(size=(B, D))
    return head, params, known, jnp.asarray(h, jnp.float32), jnp.asarray(prompt, jnp.float32)


def rewards(name: str, seed: int = 0) -> np.ndarray:
    head, params, known, h, prompt = scene(name, seed)
    return np.asarray(head.reward(params, h, head.users(params, known)[0], prompt))


def double(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype != bool else np.asarray(leaf), tree)


def linear(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def network(p: Any, x: np.ndarray, act: Any) -> np.ndarray:
    for i in range(len(p)):
        x = linear(p[str(i)], act(x) if i else x)
    return x


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def vpl_latent(p: Any, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu and log sigma² of one user from [n 2D]."""
    if not len(answers):
        return np.zeros((2, p["mu"]["bias"].size))[0], np.zeros(p["mu"]["bias"].size)
    x = network(p["pair"], answers, leaky)
    q, k, v = (linear(p[name], x) for name in ("query", "key", "value"))
    o = (softmax(q @ k.T / np.sqrt(x.shape[1])) @ v).mean(0)
    return np.clip(linear(p["mu"], o), -1, 1), np.clip(linear(p["log_variance"], o), -1, 1)


def gpo_reward(p: Any, answers: np.ndarray, text: np.ndarray, heads: int) -> float:
    """Reward of one text: answers and text in one sequence, of which answers see answers and the text sees all."""
    x = np.concatenate([linear(p["answer"], answers), linear(p["text"], text[None])])

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    count = len(answers)
    for z in range(p["blocks"]["query"]["bias"].shape[0]):
        block = jax.tree.map(lambda leaf, z=z: leaf[z], p["blocks"])
        q, k, v = (np.split(linear(block[name], norm(x)), heads, -1) for name in ("query", "key", "value"))
        rows = []
        for i in range(len(x)):
            see = list(range(count)) + ([i] if i == count else [])
            rows.append([softmax(q[a][i] @ k[a][see].T / np.sqrt(q[a].shape[1])) @ v[a][see] for a in range(heads)])
        x = x + linear(block["out"], np.array(rows).reshape(x.shape))
        x = x + network(block["wide"], norm(x), gelu)
    return linear(p["reward"], norm(x[-1]))[0]


def spl_flow(p: Any, z: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """One number of the latent after another."""
    size = answers.shape[1] // 2
    chosen, rejected = (linear(p["side"], half) for half in (answers[:, :size], answers[:, size:]))
    apart, together = ((chosen - rejected) / 2).mean(0), ((chosen + rejected) / 2).mean(0)
    found = np.zeros_like(z)
    for i in range(len(z)):
        spread, shift = (z[:i] @ p[name]["kernel"][:i, i] + p[name]["bias"][i] for name in ("spread", "shift"))
        spread, shift = spread + linear(p["spread_by"], together)[i], shift + linear(p["shift_by"], apart)[i]
        found[i] = np.exp(np.tanh(spread)) * z[i] + shift
    return found


def spl_reward(p: Any, answers: np.ndarray, text: np.ndarray) -> float:
    z = np.zeros(p["mu"]["bias"].size)
    if len(answers):
        z = spl_flow(p, vpl_latent(p, answers)[0], answers)
    x = (1 + linear(p["gain"], z)) * linear(p["text"], text) + linear(p["offset"], z)
    return linear(p["out"], leaky(x))[0]


def mrm_reward(head: Any, p: Any, one: np.ndarray, two: np.ndarray, text: np.ndarray) -> float:
    differences = network(p["reward"], one, leaky) - network(p["reward"], two, leaky)
    start, step = p["start"], 0.0
    if len(one):
        w = softmax(start)
        force = -1 / (1 + np.exp(differences @ w))  # of the mean log-loss, by each margin
        g = (force[:, None] * (differences - (differences @ w)[:, None]) * w).mean(0)
        step = head.inner_lr * g / (np.abs(g) + 1e-8)
    return float(softmax(start - step) @ network(p["reward"], text, leaky))


def hyre_reward(p: Any, one: np.ndarray, two: np.ndarray, text: np.ndarray) -> float:
    margins = network(p["reward"], one, leaky) - network(p["reward"], two, leaky)
    return float(softmax(-np.logaddexp(0, -margins).sum(0)) @ network(p["reward"], text, leaky))


def ttt_reward(head: Any, p: Any, one: np.ndarray, two: np.ndarray, text: np.ndarray) -> float:
    def keys(x: np.ndarray) -> np.ndarray:
        return gelu(linear(p["up"], x))

    def base(x: np.ndarray) -> np.ndarray:
        return x @ p["head"] + keys(x) @ p["base"]

    moved = keys(one) - keys(two)
    if "scale" in p:
        fast = p["scale"] / head.hidden * moved.sum(0)
    else:
        offsets, precision = base(one) - base(two), head.hidden * np.exp(p["log_precision"])

        def cost(a: np.ndarray) -> float:
            return np.logaddexp(0, -(offsets + moved @ a)).sum() + precision / 2 * a @ a

        def slope(a: np.ndarray) -> np.ndarray:
            return -moved.T @ (1 / (1 + np.exp(offsets + moved @ a))) + precision * a

        fast = scipy.optimize.minimize(cost, np.zeros(head.hidden), jac=slope, tol=1e-14, method="BFGS").x
        for _ in range(3):  # Newton, to the last digit
            margin = offsets + moved @ fast
            curved = (moved.T / (2 + np.exp(margin) + np.exp(-margin))) @ moved + precision * np.eye(head.hidden)
            fast = fast - np.linalg.solve(curved, slope(fast))
    return float(base(text) + keys(text) @ fast)


def expected(head: Any, params: Any, known: Known, h: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Rewards [B S] by the formulas, one row and text at a time."""
    found = np.zeros((B, SIDES))
    for b in range(B):
        answers = np.concatenate([known.chosen[b], known.rejected[b]], -1)[known.mask[b]]
        own: Any = None if known.own is None else known.own[b]
        for s in range(SIDES):
            if isinstance(head, GPO):
                found[b, s] = gpo_reward(params, answers, h[b, s], head.heads)
            elif isinstance(head, SPL):
                found[b, s] = spl_reward(params, answers, h[b, s])
            elif isinstance(head, MRM | HyRe | PTTT):
                one, two = (np.asarray(side[b])[known.mask[b]] for side in (known.chosen, known.rejected))
                if isinstance(head, HyRe):
                    found[b, s] = hyre_reward(params, one, two, h[b, s])
                else:
                    found[b, s] = (mrm_reward if isinstance(head, MRM) else ttt_reward)(head, params, one, two, h[b, s])
            elif isinstance(head, VPL | I2E):
                z = own if isinstance(head, I2E) else vpl_latent(params, answers)[0]
                found[b, s] = network(params["reward"], np.concatenate([h[b, s], z]), leaky)[0]
            elif isinstance(head, PALA):
                found[b, s] = -np.linalg.norm(
                    project(params, h[b, s]) - project(params, softmax(own) @ params["prototypes"])
                )
            else:
                found[b, s] = pal_b(params, own, h[b, s], prompt[b])
    return found


def double_scene(name: str, seed: int) -> Any:
    head, *rest = scene(name, seed)
    return head, *(double(x) for x in rest)


def project(p: Any, x: np.ndarray) -> np.ndarray:
    return linear(p["straight"], x) + network(p["bent"], x, relu)


def pal_b(p: Any, logits: np.ndarray, h: np.ndarray, prompt: np.ndarray) -> float:
    parts = [network(jax.tree.map(lambda leaf, k=k: leaf[k], p["ideal"]), prompt, gelu) for k in range(len(logits))]
    ideal, answer = softmax(logits) @ np.array(parts), network(p["answer"], h, gelu)
    scale = min(np.exp(p["scale"]), 100)
    return float(scale * ideal @ answer / np.linalg.norm(ideal) / np.linalg.norm(answer))


@each_head
@pytest.mark.parametrize("seed", [0, 1])
def test_rewards_are_those_of_the_formula(name, seed):
    want = expected(*double_scene(name, seed))
    np.testing.assert_allclose(rewards(name, seed), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def moved(tree: Any, way: Any, step: float) -> Any:
    return jax.tree.map(lambda leaf, towards: leaf + step * towards, tree, way)


@each_head
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_the_formula(name, seed):
    """Along random directions of all that is learned, against differences of the NumPy formula in float64."""
    head, params, known, h, prompt = scene(name, seed)
    rng = np.random.default_rng(seed + 20)
    weights = rng.normal(size=(B, SIDES))

    def total(learned):
        params, own = learned
        return jnp.sum(weights * head.reward(params, h, head.users(params, known._replace(own=own))[0], prompt))

    learned = (params, known.own)
    slopes = jax.jit(jax.grad(total))(learned)
    exact, own, *texts = double_scene(name, seed)[1:]
    for _ in range(3):
        way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), learned)

        def along(step, way=way):
            params, rows = moved((exact, own.own), way, step)
            return np.sum(weights * expected(head, params, own._replace(own=rows), *texts))

        want = (along(1e-6) - along(-1e-6)) / 2e-6
        parts = [np.sum(np.asarray(s) * w) for s, w in zip(jax.tree.leaves(slopes), jax.tree.leaves(way), strict=True)]
        assert np.isfinite(parts).all()
        assert sum(parts) == pytest.approx(want, rel=1e-3, abs=1e-3 * np.abs(parts).sum())


def copies(name: str, count: int) -> tuple[np.ndarray, Any]:
    """Rewards, and their gradient, by users of whom `count` copies of one answer are known; a table is fitted to it."""
    head, params, known, h, prompt = scene(name)
    chosen, rejected = (jnp.repeat(side[:, :1], max(count, 1), axis=1) for side in known[1:3])
    mask = jnp.full(chosen.shape[:2], count > 0)

    asked = jnp.broadcast_to(prompt[:, None], chosen.shape)
    own = head.adapt(params, jnp.stack([chosen, rejected], 2), asked, mask) if "table" in params else None

    def found(params):
        rewards = head.reward(params, h, head.users(params, Known(own, chosen, rejected, mask))[0], prompt)
        return jnp.sum(rewards), rewards

    (_, rewards), slopes = jax.jit(jax.value_and_grad(found, has_aux=True))(params)
    return np.asarray(rewards), slopes


@each_head
def test_no_answer_one_and_many_copies_of_one_are_finite(name):
    rewards = {}
    for count in (0, 1, 5):
        rewards[count], slopes = copies(name, count)
        assert np.isfinite(rewards[count]).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes)), count
    assert np.abs(rewards[1] - rewards[0]).max() > 1e-4
    if name == "VPL":  # a mean over answers that are all one
        np.testing.assert_allclose(rewards[5], rewards[1], rtol=1e-4, atol=1e-5)
    elif name == "I2E":  # five answers weigh five times as much
        assert np.abs(rewards[5] - rewards[1]).max() > 1e-4


def test_a_text_at_the_ideal_point_itself_has_a_gradient():
    head, params, known, _, prompt = scene("PAL-A")
    weights = head.users(params, known)[0]
    at = (weights @ params["prototypes"])[:, None]
    value, slopes = jax.value_and_grad(lambda params: jnp.sum(head.reward(params, at, weights, prompt)))(params)
    assert value == pytest.approx(0, abs=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_kl_is_the_integral():
    mu, log_variance = np.array([0.3, -1.0, 0.0]), np.array([-0.8, 0.9, 0.0])

    def integrand(x, m, v):
        density = np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        return density * (-0.5 * (x - m) ** 2 / v - 0.5 * np.log(v) + 0.5 * x**2)

    want = sum(
        scipy.integrate.quad(integrand, -30, 30, args=(m, np.exp(v)))[0] for m, v in zip(mu, log_variance, strict=True)
    )
    found = vpl.kl(jnp.asarray(mu[None], jnp.float32), jnp.asarray(log_variance[None], jnp.float32))
    np.testing.assert_allclose(found, [want], rtol=1e-5)


def test_vpls_latent_in_training_is_scaled_and_costs_its_divergence():
    head, params, known, _, _ = scene("VPL")
    for progress, weight in ((0.0, 0.1), (0.5, 0.55), (1.0, 1.0)):
        z, penalty = head.users(params, known, jnp.full(B, progress), jax.random.key(3))
        length = np.linalg.norm(z, axis=1)
        np.testing.assert_allclose(length[:3], np.sqrt(head.hidden), rtol=1e-5)
        assert length[3] == 0, "nothing is known of the last one"
        np.testing.assert_allclose(penalty, 0.3 * weight * np.asarray(vpl.kl(*head.encode(params, known))), rtol=1e-5)
        assert penalty[3] == 0 < penalty[0]
    draws = [head.users(params, known, jnp.zeros(B), jax.random.key(k))[0] for k in (1, 2)]
    assert np.abs(draws[0] - draws[1])[:3].max() > 1e-3


@pytest.mark.parametrize("name", ["I2E", "PAL-A", "PAL-B"])
def test_the_prior_on_what_a_user_owns(name):
    head, params, known, _, _ = scene(name)
    penalty = head.users(params, known)[1]
    np.testing.assert_allclose(penalty, 0.5 * head.shrink * (np.asarray(known.own) ** 2).sum(1), rtol=1e-5)


def test_losses():
    margin = np.array([-2.0, 0.0, 0.4, 3.0])
    np.testing.assert_allclose(HEADS["PAL-A"].loss(jnp.asarray(margin)), np.maximum(0, 1 - margin), rtol=1e-6)
    for name in ("VPL", "I2E", "PAL-B", "GPO"):
        np.testing.assert_allclose(HEADS[name].loss(jnp.asarray(margin)), np.log1p(np.exp(-margin)), rtol=1e-5)


def adapted(name: str, order: Any = None, extra: int = 0, junk: float = 0.0) -> Any:
    """Rewards by users who are known by their answers alone: in another order, with more padding, full of junk."""
    head, params, known, h, prompt = scene(name)
    sides = [np.pad(np.asarray(x), ((0, 0), (0, extra), (0, 0)), constant_values=junk) for x in known[1:3]]
    mask = np.pad(np.asarray(known.mask), ((0, 0), (0, extra)))
    sides = [np.where(mask[..., None], side, junk).astype(np.float32) for side in sides]
    if order is not None:
        sides, mask = [side[:, order] for side in sides], mask[:, order]
    chosen, rejected, mask = (jnp.asarray(x) for x in (*sides, mask))
    asked = jnp.broadcast_to(prompt[:, None], chosen.shape)
    own = head.adapt(params, jnp.stack([chosen, rejected], 2), asked, mask) if "table" in params else None
    return np.asarray(head.reward(params, h, head.users(params, Known(own, chosen, rejected, mask))[0], prompt))


@each_head
def test_neither_order_nor_padding_of_answers_matters_and_their_content_does(name):
    want = adapted(name)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(adapted(name, order=[2, 0, 1]), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(adapted(name, extra=2, junk=7.0), want, rtol=1e-4, atol=1e-4)
    head, params, known, h, prompt = scene(name)
    other = scene(name, seed=5)[2]
    asked = jnp.broadcast_to(prompt[:, None], other.chosen.shape)
    own = head.adapt(params, jnp.stack([other.chosen, other.rejected], 2), asked, known.mask)
    found = head.reward(params, h, head.users(params, Known(own, other.chosen, other.rejected, known.mask))[0], prompt)
    assert np.abs(found - want)[:3].max() > 1e-4
    np.testing.assert_allclose(np.asarray(found)[3], want[3], rtol=1e-5, atol=1e-5)


def test_who_is_not_known_gets_the_mean_or_the_uniform_mixture():
    for name, want in (("I2E", None), ("PAL-A", 0.0), ("PAL-B", 0.0)):
        head, params, known, _, prompt = scene(name)
        h = jnp.stack([known.chosen, known.rejected], 2)
        own = head.adapt(params, h, jnp.broadcast_to(prompt[:, None], known.chosen.shape), known.mask)
        want = np.asarray(params["table"]).mean(0) if want is None else np.full(own.shape[1], want)
        np.testing.assert_allclose(own[3], want, atol=1e-6)


def test_the_proxy_is_the_posterior_mean_over_seen_users():
    head, params, known, _, prompt = scene("I2E")
    h = jnp.stack([known.chosen, known.rejected], 2)
    found = head.adapt(params, h, jnp.broadcast_to(prompt[:, None], known.chosen.shape), known.mask)
    p, k = double(params), double(known)
    for b in range(B):
        logs = np.zeros(U)
        for u in range(U):
            for c, r in zip(k.chosen[b][k.mask[b]], k.rejected[b][k.mask[b]], strict=True):
                one, two = (network(p["reward"], np.concatenate([x, p["table"][u]]), leaky)[0] for x in (c, r))
                logs[u] -= np.log1p(np.exp(two - one))
        np.testing.assert_allclose(found[b], softmax(logs) @ p["table"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["PAL-A", "PAL-B"])
def test_a_new_users_mixture_is_the_best_one(name):
    head, params, known, _, prompt = scene(name)
    asked = jnp.broadcast_to(prompt[:, None], known.chosen.shape)
    found = head.adapt(params, jnp.stack([known.chosen, known.rejected], 2), asked, known.mask)
    p, k = double(params), double(known)
    for b in range(B):

        def cost(logits, b=b):
            pairs = zip(k.chosen[b][k.mask[b]], k.rejected[b][k.mask[b]], strict=True)
            x = np.asarray(prompt[b], np.float64)
            if name == "PAL-A":
                ideal = project(p, softmax(logits) @ p["prototypes"])
                rewards = [[-np.linalg.norm(project(p, y) - ideal) for y in pair] for pair in pairs]
            else:
                rewards = [[pal_b(p, logits, y, x) for y in pair] for pair in pairs]
            margins = np.array([one - two for one, two in rewards])
            losses = relu(1 - margins) if name == "PAL-A" else np.logaddexp(0, -margins)
            return losses.sum() + 0.5 * head.shrink * (logits**2).sum()

        # Of hinges the best may lie at a kink, around which Adam swings.
        start, slack = np.zeros(head.prototypes), 2e-2 if name == "PAL-A" else 1e-3
        best = scipy.optimize.minimize(cost, start, method="Nelder-Mead", options={"maxiter": 4000, "maxfev": 4000}).fun
        assert cost(np.asarray(found[b], np.float64)) <= best + slack


@each_head
def test_gradients_reach_every_parameter(name):
    head, params, _, _, _ = scene(name)
    rng = np.random.default_rng(1)
    frozen = {
        "features": jnp.asarray(rng.normal(size=(9, D)), jnp.float32),
        "prompts": jnp.asarray(rng.normal(size=(3, D)), jnp.float32),
        "prompt": jnp.asarray(rng.integers(0, 3, 9)),
        "number": jnp.arange(U),
    }
    chosen, rejected = rng.integers(0, 9, (2, 32))
    context = {f"context_{side}": rng.integers(0, 9, (32, N)) for side in ("chosen", "rejected")}
    batch = {"user": rng.integers(0, U, 32), "chosen": chosen, "rejected": rejected, **context}
    batch |= {"context_mask": rng.random((32, N)) < 0.7, "progress": np.full(32, 0.5, np.float32)}
    batch, loss = jax.tree.map(jnp.asarray, batch), head_training.feature_loss(head)
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, jax.random.key(0))
    assert np.isfinite(value)
    assert set(metrics) == {"accuracy", "margin", "penalty"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), where
        # A bias added to both texts' rewards cancels, and one added to all of a query's keys as well.
        if not where.endswith("['bias']"):
            assert np.abs(leaf).max() > 0, where


def camps(rng: np.random.Generator) -> tuple[States, Comparisons, Comparisons, Comparisons, np.ndarray]:
    """Two camps of 120 users with opposite tastes on 8 features; learning, context and test pairs; 180 are seen."""
    users, responses, dim = 240, 400, 8
    features = rng.normal(size=(responses, dim)).astype(np.float32)
    taste = np.where(np.arange(users) % 2, 1, -1)[:, None] * np.array([2.0, -2, 1, 0, 0, 0, 0, 0])[None]
    seen = np.arange(users) < 180

    def ask(count):
        user = np.repeat(np.arange(users), count)
        one, two = rng.integers(0, responses, (2, len(user)))
        first = ((features[one] - features[two]) * taste[user]).sum(1) > 0
        chosen, rejected = np.where(first, one, two), np.where(first, two, one)
        user, chosen, rejected = (np.asarray(column, np.int32) for column in (user, chosen, rejected))
        return Comparisons(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))

    known, test = ask(8), ask(10)
    learn = known.take(seen[known.user])
    texts = jnp.asarray(features)
    return States(texts, texts, texts[:4], jnp.asarray(np.arange(responses) % 4, jnp.int32)), learn, known, test, seen


# HyRe's heads learn from everyone's votes, where opposite camps cancel out; there is nothing for it to weigh.
FINDS_CAMPS = [name for name in HEADS if name != "HyRe"]


@pytest.mark.parametrize("name", FINDS_CAMPS)
def test_planted_camps_are_found_where_a_shared_reward_must_guess(name, tmp_path):
    rng = np.random.default_rng(4)
    states, learn, known, test, seen = camps(rng)
    config = BaselinesConfig(hidden=16, embedding=4, batch_size=64, lr=3e-3)
    head = head_training.HEADS[name](config)[0]
    task = on_features.Task(states, learn, np.zeros(len(learn.user), bool), seen, 0)
    params, facts = on_features.fit_head(head, 300, config, task, learn, folder=tmp_path)
    assert facts["trainable_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    users = head_training.user_representations(head, params, states, known, seen, context=config.context, seed=0)
    right = head_training.pair_margins(head, params, states, users, test) > 0
    differences, asked = (
        np.asarray(states.rated)[p.chosen] - np.asarray(states.rated)[p.rejected] for p in (learn, test)
    )
    shared = asked @ np.linalg.lstsq(differences, np.ones(len(differences)), rcond=None)[0] > 0
    for who in (seen, ~seen):
        assert shared[who[test.user]].mean() < 0.6
        assert right[who[test.user]].mean() > 0.8


def test_hyre_trusts_the_head_that_makes_a_users_votes_likely():
    """Two heads that were told apart by hand: each of two camps gets its own."""
    rng = np.random.default_rng(4)
    states, _, known, test, seen = camps(rng)
    head = HyRe(hidden=8, heads=2)
    params = head.init(jax.random.key(0), 8, 0)
    first, second, last = (params["reward"][str(i)] for i in range(3))
    taste = jnp.zeros((8, 8)).at[:3, 0].set(jnp.array([2.0, -2, 1])).at[:3, 1].set(-jnp.array([2.0, -2, 1]))
    params["reward"] = {
        "0": {**first, "kernel": taste},
        "1": {**second, "kernel": jnp.eye(8)},
        "2": {**last, "kernel": jnp.eye(8)[:, :2]},
    }
    users = head_training.user_representations(head, params, states, known, seen, context=8, seed=0)
    np.testing.assert_allclose(np.sum(users, axis=1), 1, rtol=1e-5)
    right = head_training.pair_margins(head, params, states, users, test) > 0
    assert right.mean() > 0.95
    drawn, _ = head.users(
        params,
        Known(None, jnp.zeros((50, 1, 8)), jnp.zeros((50, 1, 8)), jnp.ones((50, 1), bool)),
        None,
        jax.random.key(1),
    )
    assert set(np.asarray(drawn).sum(axis=0)) != {0.0}
    assert np.array_equal(np.sort(np.asarray(drawn), axis=1), np.tile([0.0, 1.0], (50, 1)))


def test_mrm_puts_weight_on_hard_users_and_not_on_the_threshold():
    head, losses = MRM(gamma=0.5), np.array([0.1, 0.2, 0.9, 2.0])
    weights = 1 / (1 + np.exp(-(losses - np.median(losses)) / 0.5))
    assert float(head.reduce(jnp.asarray(losses))) == pytest.approx(np.mean(weights * losses), rel=1e-5)
    slopes = np.asarray(jax.grad(head.reduce)(jnp.asarray(losses)))
    want = (weights + losses * weights * (1 - weights) / 0.5) / 4
    np.testing.assert_allclose(slopes, want, rtol=1e-5)


def test_spls_guidance_and_divergence_are_those_of_the_formula():
    head, params, known, _, _ = scene("SPL")
    z, penalty = head.users(params, known, jnp.full(B, 1.0), jax.random.key(3))
    noise = np.asarray(jax.random.normal(jax.random.key(3), (B, head.hidden)))
    p, k = double(params), double(known)
    for b in range(B):
        answers = np.concatenate([k.chosen[b], k.rejected[b]], -1)[k.mask[b]]
        if not len(answers):
            assert penalty[b] == 0
            continue
        mu, log_variance = vpl_latent(p, answers)
        turned, spread = vpl_latent(p, np.concatenate([k.rejected[b], k.chosen[b]], -1)[k.mask[b]])
        drawn = mu + np.exp(log_variance / 2) * noise[b]
        found = spl_flow(p, drawn, answers)
        np.testing.assert_allclose(z[b], found, rtol=1e-4, atol=1e-5)
        # The density of what the flow makes of a Gaussian, by its Jacobian in numbers.
        step = 1e-6 * np.eye(len(mu))
        jacobian = np.array([(spl_flow(p, drawn + s, answers) - spl_flow(p, drawn - s, answers)) / 2e-6 for s in step])
        log_q = -0.5 * np.sum(noise[b] ** 2 + log_variance) - np.linalg.slogdet(jacobian)[1]
        divergence = log_q + 0.5 * np.sum(found**2)
        guidance = np.mean((mu + turned) ** 2 + (log_variance - spread) ** 2)
        assert float(penalty[b]) == pytest.approx(0.3 * divergence + 0.7 * guidance, rel=1e-3, abs=1e-3)


def test_wrong_settings_are_told_together():
    with pytest.raises(UserError, match=r"(?s)hidden: is 0; .*kl_weights: is empty; .*generic_share: is 2"):
        BaselinesConfig(hidden=0, kl_weights=(), generic_share=2.0)
