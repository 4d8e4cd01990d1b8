"""CoPL's graph on real tastes, seen and unseen people, beside methods that know no texts either.

    python -m experiments.warm_pairs --config=configs/jester_warm.py --config.source.path=DIR --workdir=runs/warm

Each number of pairs is a folder with a `results.json` of its own; what is there already is not done again. `report.md`
has all of them.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from copl_jax.graph import edge_weights, training
from copl_jax.graph.embedding import embed_new_users, margins
from copl_jax.graph.settings import GCFConfig, fast_config, linear_config
from copl_jax.graph.solved_users import solve_users
from experiments.runner.cli import Config, check_workdir, freeze, launch
from experiments.studies import warm_texts
from experiments.studies.warm_ratings import WarmConfig, WarmWorld, draw
from experiments.studies.warm_texts import Margins, TextConfig, Texts
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.baselines import matrix_factorisation, user_knn
from pref_jax.data.sources import jester
from pref_jax.errors import UserError
from pref_jax.eval.reporting import report, results
from pref_jax.files import write_text
from pref_jax.item_values import choose_item_values
from pref_jax.likelihood import Scale

METRICS = {"seen/accuracy": "Accuracy, seen people", "unseen/accuracy": "Accuracy, unseen people"}
MEANINGS = {
    "item values": "one Bradley-Terry value per response for everyone",
    "matrix factorisation": "biased, 16, 64 or 128 factors, prior and time to stop by validation votes",
    "user-kNN": "values, and votes of the users of nearest votes",
    "gcf": "the published graph by the fast recipe",
    "gcf, by loss, to the end": "the same, 200 epochs, the best by the loss of validation votes",
    "gcf, one layer": "the same as gcf with one layer in place of four",
    "gcf, all layers read out": "the same as before it, and an embedding is the sum of the table and all layers",
    "gcf, counted edges": "the same as gcf, a response chosen three times weighs three times",
    "normed, to the end": "messages weighed by both degrees, 200 epochs",
    "no layer, to the end": "embeddings alone, 200 epochs",
    "linear": "CoPL's default graph",
    "linear, no layer": "the default's embeddings alone, their prior and bias as they are",
    "linear, no bias": "without a number per response for its popularity",
    "linear, weak prior": "with the precision 0.1 in place of the one that validation votes choose",
    "linear, by accuracy": "the best evaluation by accuracy in place of loss",
    "linear, counted edges": "a response chosen three times weighs three times",
    "LoRe on responses": "LoRe's quick search on a free value per response in place of text features",
    **warm_texts.MEANINGS,
}


def run(config: Config, workdir: Path) -> None:
    """Every number of pairs, seed and method that is not done yet; then the report."""
    check_workdir(workdir, config)
    known = METHODS | warm_texts.METHODS
    if unknown := sorted(set(config.methods) - set(known)):
        raise UserError(f"config.methods: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    ratings, world = _ratings(config), freeze(WarmConfig, config.world, "world")
    reads = set(config.methods) & set(warm_texts.METHODS)
    text, texts = freeze(TextConfig, config.text, "text"), _texts(config) if reads else None
    for pairs, seed in tqdm([(n, seed) for seed in config.seeds for n in config.pairs], desc="worlds", disable=None):
        path = workdir / f"{pairs}_pairs" / "results.json"
        left = results.missing(path, config.methods, seed)
        drawn: Any = draw(ratings, world, pairs=pairs, seed=seed) if left else None
        for method in left:
            start = time.perf_counter()
            if method in METHODS or texts is None:
                seen, unseen = METHODS[method](drawn, seed)
            else:
                seen, unseen = warm_texts.METHODS[method](warm_texts.preferences(drawn, texts), text, seed)
            metrics = {"seen/accuracy": float(np.mean(seen > 0)), "unseen/accuracy": float(np.mean(unseen > 0))}
            seconds = time.perf_counter() - start
            row = results.result_row(method=method, seed=seed, metrics=metrics, seconds=seconds)
            results.write_results(path, dataset=f"{pairs} pairs per person", rows=[row])
    _report(workdir, config)


def _ratings(config: Config) -> np.ndarray:
    """Ratings [people, responses], NaN where there is none."""
    if config.source.name == "random":
        return np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    if not config.source.path:
        raise UserError("config.source.path is empty; give the folder of Jester's files, --config.source.path=DIR")
    return jester.read_ratings(Path(config.source.path)).values


def _texts(config: Config) -> Texts:
    if not config.text.base:
        raise UserError("config.text.base is empty; name the transformer that reads texts, --config.text.base=NAME")
    if config.source.name == "random":
        return Texts("Which number?", [f"number {row}" for row in range(12)])
    found = jester.joke_texts(Path(config.source.path))
    if blank := [joke for joke in range(1, jester.JOKES + 1) if not found.get(joke)]:
        raise UserError(f"{config.source.path}: no text of jokes {blank[:5]}; fetch the archive again")
    return Texts(jester.PROMPT, [found[joke] for joke in range(1, jester.JOKES + 1)])


def _item_values(world: WarmWorld, seed: int) -> Margins:
    values, _ = choose_item_values(world.train, world.validation, world.num_responses)
    seen, unseen = (values[part.chosen] - values[part.rejected] for part in (world.test, world.unseen_test))
    return seen, unseen


def _lore(world: WarmWorld, seed: int) -> Margins:
    config = LoReConfig.quick(features="response", seed=seed)
    nothing = np.ones((world.num_responses, 1), np.float32)  # features that tell no response from another
    found = model_selection.fit(nothing, world.train, world.validation, world.num_seen, config=config)
    unseen = model_selection.adapt(found, nothing, world.context, world.num_unseen)
    parts = (found.weights, world.test), (unseen, world.unseen_test)
    seen, unseen = (np.asarray(model_selection.predict(found, nothing, weights, votes)) for weights, votes in parts)
    return seen, unseen


def _factors(world: WarmWorld, seed: int) -> Margins:
    sizes: Any = {"num_users": world.num_seen, "num_responses": world.num_responses}
    found = matrix_factorisation.fit(world.train, world.validation, **sizes, key=jax.random.key(seed))
    new = found.new_users(world.context, world.num_unseen)
    return (
        margins(found.users, found.responses, world.test, found.bias),
        margins(new, found.responses, world.unseen_test, found.bias),
    )


def _nearest(world: WarmWorld, seed: int) -> Margins:
    sizes = {"num_users": world.num_seen, "num_responses": world.num_responses}
    known = user_knn.fit(world.train, world.validation, **sizes)
    return (
        user_knn.margins(known, world.train, world.test, num_users=world.num_seen),
        user_knn.margins(known, world.context, world.unseen_test, num_users=world.num_unseen),
    )


def graph_margins(config: GCFConfig, world: WarmWorld, seed: int) -> Margins:
    """Seen users as trained, or solved where the layer allows it; unseen ones as CoPL embeds them."""
    sizes = {"num_users": world.num_seen, "num_responses": world.num_responses}
    graph = edge_weights.build(world.train, Scale(), edges=config.edges, **sizes)
    found = training.fit(config, graph, world.train, world.validation, jax.random.key(seed))
    unseen = np.arange(world.num_unseen)
    if found.table is not None:
        users = solve_users(found.table, world.train, np.arange(world.num_seen))
        new = solve_users(found.table, world.context, unseen)
    else:
        users, shift = found.users, world.num_seen
        padded = np.concatenate([users, np.zeros((world.num_unseen, users.shape[1]), users.dtype)])
        context = world.context._replace(user=world.context.user + shift)
        new = embed_new_users(
            users=padded,
            responses=found.responses,
            table=None,
            seen=np.arange(len(padded)) < shift,
            train_pairs=world.train,
            context=context,
            unseen=unseen + shift,
        ).users
    return (
        margins(users, found.responses, world.test, found.bias),
        margins(new, found.responses, world.unseen_test, found.bias),
    )


# Of the layers without a prior.
_DIM = 64
_TO_THE_END: dict[str, Any] = {"epochs": 200, "patience": None}
GRAPHS: dict[str, GCFConfig] = {
    "gcf": fast_config(dim=_DIM),
    "gcf, by loss, to the end": fast_config(dim=_DIM, select="loss", **_TO_THE_END),
    "gcf, one layer": fast_config(dim=_DIM, num_layers=1),
    "gcf, all layers read out": fast_config(dim=_DIM, readout="sum", select="loss", **_TO_THE_END),
    "gcf, counted edges": fast_config(dim=_DIM, edges="counted"),
    "normed, to the end": fast_config(dim=_DIM, layer="normed", **_TO_THE_END),
    "no layer, to the end": fast_config(dim=_DIM, num_layers=0, **_TO_THE_END),
    "linear": linear_config(),
    "linear, no layer": linear_config(num_layers=0),
    "linear, no bias": linear_config(bias=False),
    "linear, weak prior": linear_config(priors=(0.1,)),
    "linear, by accuracy": linear_config(select="accuracy"),
    "linear, counted edges": linear_config(edges="counted"),
}


def _graph(config: GCFConfig) -> Callable[[WarmWorld, int], Margins]:
    return lambda world, seed: graph_margins(config, world, seed)


METHODS: dict[str, Callable[[Any, int], Margins]] = {
    "item values": _item_values,
    "matrix factorisation": _factors,
    "user-kNN": _nearest,
    "LoRe on responses": _lore,
    **{name: _graph(config) for name, config in GRAPHS.items()},
}


def _report(workdir: Path, config: Config) -> None:
    found = [results.read_results(workdir / f"{pairs}_pairs" / "results.json") for pairs in config.pairs]
    told = [f"- **{name}**: {MEANINGS[name]}." for name in config.methods if name in MEANINGS]
    parts = [f"# {config.dataset}", "\n".join(told)]
    for metric, title in METRICS.items():
        parts += [f"## {title}", report.across(found, metric, config.methods)]
    write_text(workdir / "report.md", "\n\n".join(part.strip("\n") for part in parts) + "\n")
    print(f"report: {workdir}")


if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/jester_warm.py")
