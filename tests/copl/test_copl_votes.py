"""Ties, strengths and choices in CoPL's graph: edges, sums, loss and cold start against dense float64 formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_graded import mixed, sizes

from copl_jax.graph import edge_weights, gcf, signed_graph, training
from copl_jax.graph.cold_start import cold_start
from copl_jax.graph.embedding import margins
from copl_jax.graph.settings import fast_config
from pref_jax import graded
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, fit_scale

USERS, RESPONSES = 8, 30


def dense(votes: Comparisons, scale: Scale) -> list[np.ndarray]:
    """Weights [U N] of positive and negative edges, vote by vote."""
    found = np.zeros((2, USERS, RESPONSES))
    for row, (user, chosen, rejected) in enumerate(zip(*votes[:3], strict=True)):
        if votes.tie[row]:
            ends = [(sign, response, 0.5) for sign in (0, 1) for response in (chosen, rejected)]
        else:
            strength = votes.strength[row]
            told = np.isfinite(strength) and scale.use != "ignore"
            weight = min(max(strength / scale.mean, 0.25), 4) if told else 1
            ends = [(0, chosen, weight), (1, rejected, weight / sizes(votes)[row])]
        for sign, response, weight in ends:
            found[sign, user, response] = max(found[sign, user, response], weight)
    return list(found)


@pytest.mark.parametrize("use", ["levels", "ignore"])
def test_edges_weigh_as_votes_do_and_are_normalised_by_weighted_degrees(use):
    rng = np.random.default_rng(1)
    votes = mixed(rng, 40)
    votes = votes.take(np.concatenate([np.arange(len(votes.user)), np.arange(5)]))  # some twice
    votes.strength[:3] = 0.01, 40.0, 2.0
    votes.tie[:3], votes.choice[:3] = False, -1
    scale = fit_scale(votes, use)
    made: Any = edge_weights.build(votes, scale, num_users=USERS, num_responses=RESPONSES)
    with jax.enable_x64(True):
        rows = edge_weights.edge_votes(votes, scale)
        sizes: dict[str, Any] = {"num_users": USERS, "num_responses": RESPONSES}
        exact: Any = signed_graph.build(*rows[:3], weight=rows.weight, dtype=np.float64, **sizes)
        nodes = jnp.asarray(rng.standard_normal((len(exact.positive.nodes["degree"]), 4)))
        pull = jnp.asarray(rng.standard_normal(nodes.shape))
        for sign, weight in zip((exact.positive, exact.negative), dense(votes, scale), strict=True):
            total = np.sqrt(np.maximum(np.outer(weight.sum(1), weight.sum(0)), 1e-9))
            whole = np.zeros((len(nodes),) * 2)
            whole[:USERS, USERS : USERS + RESPONSES] = weight / total
            whole += whole.T
            ours, back = jax.vjp(lambda nodes, sign=sign: signed_graph.aggregate(sign, nodes), nodes)
            np.testing.assert_allclose(ours, whole @ nodes, rtol=1e-6, atol=1e-7)  # weights come in float32
            np.testing.assert_allclose(back(pull)[0], whole.T @ pull, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(sign.nodes["degree"][:USERS], (weight > 0).sum(1))
    np.testing.assert_allclose(made.positive.edges["weight"], exact.positive.edges["weight"], rtol=1e-6)


def test_plain_votes_make_the_graph_of_pairs_to_the_bit():
    votes = mixed(np.random.default_rng(2), 40, ties=False)
    votes = votes._replace(strength=np.full(len(votes.user), np.nan, np.float32), choice=None)
    sizes: Any = {"num_users": USERS, "num_responses": RESPONSES}
    ours = edge_weights.build(votes, fit_scale(votes), **sizes)
    plain = signed_graph.build(*votes[:3], **sizes)
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)
    with pytest.raises(UserError, match="give two finite numbers above 0"):
        signed_graph.build(*votes[:3], weight=np.zeros((len(votes.user), 2)), **sizes)


def test_attention_weighs_neighbours_by_their_edges():
    """An edge of weight 2 counts as two of weight 1 to neighbours alike."""
    config = fast_config(layer="attention", dim=4, num_layers=1)
    user, chosen = np.array([0, 0]), np.array([0, 1])
    made = signed_graph.build(
        user, chosen, np.array([2, 2]), num_users=1, num_responses=3, weight=np.array([[2.0, 1], [1, 1]])
    )
    params = gcf.init(config, jax.random.key(0), made)
    # The same user with a third response like the first.
    three = signed_graph.build(np.zeros(3, int), np.array([0, 1, 3]), np.array([2, 2, 2]), num_users=1, num_responses=4)
    rows = params["nodes"][jnp.array([0, 1, 2, 3, 1])]
    wide = {**params, "nodes": jnp.zeros((32, 4)).at[:5].set(rows)}
    np.testing.assert_allclose(
        gcf.propagate(config, params, made)[0], gcf.propagate(config, wide, three)[0], rtol=1e-5, atol=1e-6
    )


def test_loss_and_gradients_of_votes_of_every_kind():
    rng = np.random.default_rng(4)
    votes = mixed(rng, 30)
    scale, config = fit_scale(votes), fast_config(dim=3, num_layers=0, edge_dropout=0.0)
    found = graded.grade(votes, scale)
    with jax.enable_x64(True):
        made = edge_weights.build(votes, scale, num_users=USERS, num_responses=RESPONSES)
        batch, key = signed_graph.batch_of(votes, made, found), jax.random.key(0)
        assert len(batch.real) > len(votes.user)  # some are padding
        params = gcf.init(config, key, made, jnp.float64, graded.begin_gaps(found, scale))
        nodes = np.asarray(params["nodes"])

        def expected(nodes, gaps):
            users, responses = nodes[:USERS], nodes[USERS:]
            margin = jnp.sum(users[votes.user] * (responses[votes.chosen] - responses[votes.rejected]), 1)
            ends = jnp.cumsum(jax.nn.softplus(jnp.concatenate([gaps["ties"], gaps["levels"]])) + 1e-4)
            low = jnp.where(votes.tie, -ends[0], ends[jnp.clip(jnp.nan_to_num(votes.strength) - 1, 0).astype(int)])
            level = jnp.nan_to_num(votes.strength).astype(int)
            high = jnp.where(votes.tie, ends[0], jnp.where((level > 0) & (level < 3), ends[jnp.clip(level, 0, 2)], 1e9))
            low = jnp.where(votes.choice >= 0, 0, low)
            chance = jax.nn.sigmoid(high - margin) - jax.nn.sigmoid(low - margin)
            norms = (users[votes.user] ** 2).sum() + (responses[votes.chosen] ** 2).sum()
            norms += (responses[votes.rejected] ** 2).sum()
            return jnp.mean(-jnp.log(chance) / sizes(votes)) + config.regularisation * norms

        (value, parts), slopes = jax.value_and_grad(lambda p: gcf.loss(config, p, made, batch), has_aux=True)(params)
        right, wanted = jax.value_and_grad(expected, (0, 1))(jnp.asarray(nodes), params["gaps"])
        np.testing.assert_allclose(value, right, rtol=1e-7)  # weights are float32
        np.testing.assert_allclose(slopes["nodes"], wanted[0], rtol=1e-6, atol=1e-10)
        for name, slope in wanted[1].items():
            np.testing.assert_allclose(slopes["gaps"][name], slope, rtol=1e-6, atol=1e-10)
        responses = nodes[USERS : USERS + RESPONSES]
        right = (margins(nodes[:USERS], responses, votes)[~votes.tie] > 0).mean()
        np.testing.assert_allclose(parts["accuracy"], right)


def test_cold_start_reads_ties_and_makes_no_neighbours_of_them():
    rng = np.random.default_rng(6)
    train, context = mixed(rng, 60), mixed(rng, 40)
    train, context = train.take(train.user < 5), context.take(context.user >= 5)
    context.tie[context.user == 7] = True  # who gave ties alone
    context.strength[context.tie], context.choice[context.user == 7] = np.nan, -1
    users = training.normalised(rng.standard_normal((USERS, 4)))
    responses = rng.standard_normal((RESPONSES, 4))
    scale, unseen, seen = fit_scale(train), np.array([5, 6, 7]), np.arange(USERS) < 5
    fitted = graded.fit_thresholds(margins(users, responses, train), train, scale)
    with jax.enable_x64(True):
        tables: dict[str, Any] = {"users": users, "responses": responses, "seen": seen, "train_pairs": train}
        got = cold_start(**tables, context=context, unseen=unseen, scale=fitted)
    ends = np.concatenate([fitted.thresholds, [np.inf]])
    for place, who in enumerate(unseen):
        own = context.take(context.user == who)
        chose = {int(row) for row in own.chosen[~own.tie]}
        near = [u for u in range(5) if chose & set(train.chosen[(train.user == u) & ~train.tie].tolist())]
        assert got.num_neighbours[place] == len(near)
        assert got.used_all_users[place] == (not near)
        fits = []
        for u in near or range(5):
            margin = (responses[own.chosen] - responses[own.rejected]) @ users[u]
            level = np.nan_to_num(own.strength).astype(int)
            low = np.where(own.choice >= 0, 0, np.where(own.tie, -ends[0], ends[np.maximum(level - 1, 0)]))
            high = np.where(own.tie, ends[0], np.where(level > 0, ends[level], np.inf))
            chance = 1 / (1 + np.exp(margin - high)) - 1 / (1 + np.exp(margin - low))
            fits.append((np.log(chance) / sizes(own)).sum() / (1 / sizes(own)).sum())
        weight = np.exp((np.array(fits) - max(fits)) / 0.07)
        right = weight @ users[near or range(5)] / weight.sum()
        np.testing.assert_allclose(got.embeddings[place], right, rtol=1e-4, atol=1e-6)  # weights are float32
    assert got.num_neighbours[2] == 0


def world(seed: int, *, ties: float, levels: bool) -> tuple[Comparisons, Comparisons, Comparisons]:
    """Two tastes, noisy votes of which a part are ties, graded by three levels; test votes without noise."""
    rng, count, prompts = np.random.default_rng(seed), 200, 60
    group, quality = rng.integers(0, 2, count), 2 * rng.standard_normal((2, prompts, 2))

    def draw(each, noise):
        user, prompt = np.repeat(np.arange(count), each), rng.integers(0, prompts, count * each)
        margin = quality[group[user], prompt, 0] - quality[group[user], prompt, 1]
        return user, prompt, margin + noise * rng.logistic(size=len(user))

    def votes(drawn, cuts):
        user, prompt, said = drawn
        level = np.searchsorted(cuts, np.abs(said))
        strength = np.where((level > 0) & levels, level, np.nan).astype(np.float32)
        return Comparisons(user, 2 * prompt + (said < 0), 2 * prompt + (said >= 0), tie=level == 0, strength=strength)

    drawn = draw(8, 1)
    cuts = np.quantile(np.abs(drawn[2]), [ties, ties + (1 - ties) / 3, ties + (1 - ties) * 2 / 3])
    cuts[0] = cuts[0] if ties else -1
    return votes(drawn, cuts), votes(draw(1, 1), cuts), votes(draw(20, 0), np.array([-1.0, 0, 0]))


def accuracy(train: Comparisons, validation: Comparisons, test: Comparisons, *, ties: bool, strengths: str) -> float:
    if not ties:
        train, validation = (part.take(~part.tie) for part in (train, validation))
    scale = graded.find_scale(train, strengths)
    made = edge_weights.build(train, scale, num_users=200, num_responses=120)
    found = training.fit(fast_config(dim=16, num_layers=2), made, train, validation, jax.random.key(0), scale=scale)
    return float(np.mean(margins(found.users, found.responses, test) > 0))


def test_using_ties_and_strengths_beats_dropping_them():
    gains = {"ties": [], "strengths": []}
    for seed in range(3):
        tied, leveled = world(seed, ties=0.4, levels=False), world(seed, ties=0, levels=True)
        gains["ties"].append(
            accuracy(*tied, ties=True, strengths="levels") - accuracy(*tied, ties=False, strengths="levels")
        )
        gains["strengths"].append(
            accuracy(*leveled, ties=True, strengths="levels") - accuracy(*leveled, ties=True, strengths="ignore")
        )
    assert np.mean(gains["ties"]) > 0.01, gains
    assert np.mean(gains["strengths"]) > 0.01, gains
