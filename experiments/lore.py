"""LoRe on frozen features: a basis of rewards and the seen users' weights, unseen users' weights solved in closed form.

    python -m experiments.lore --config=configs/quickstart.py --workdir=runs/quickstart

Beside it stand two linear references on the same features: one shared reward and the group oracle.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.baselines.oracle import group_numbers
from experiments.cli import Config, freeze, launch
from experiments.embed import embed
from experiments.prepare import prepare
from experiments.stages import Run, load_data, load_features, runs, scored, test_pairs, votes_by_prompt
from experiments.summary import summarise
from lore_jax import fit
from lore_jax.fit import Fit, RegularisedConfig
from pref_jax.data.preferences import Pairs, Preferences

Votes = tuple[Pairs, Pairs]
METHOD, SHARED, ORACLE = "LoRe", "shared (features)", "oracle (features)"


def run(config: Config, workdir: Path) -> None:
    """LoRe and its linear references for every seed, then the report."""
    for one in runs(config, workdir):
        prepare(one)
        for method in (SHARED, ORACLE, METHOD):
            lore(one, method)
    summarise(config, workdir)


def lore(run: Run, method: str = METHOD) -> None:
    """Fits one of the three methods on features and scores it, unless that is done."""
    embed(run)
    data = load_data(run)
    if method == ORACLE and group_numbers(data) is None:
        return
    fits: dict[str, Callable[..., tuple[Fit, np.ndarray]]] = {METHOD: _lore, SHARED: _shared, ORACLE: _oracle}

    def score() -> tuple[np.ndarray, dict[str, Any]]:
        features = np.asarray(load_features(run))
        config = freeze(RegularisedConfig, run.config.lore, "lore")
        found, weights = fits[method](data, votes_by_prompt(run, data, fraction=0.2), features, config)
        facts = {"chosen": found.chosen, "candidates": list(found.candidates), "rank": int(found.basis.shape[1])}
        return np.asarray(fit.predict(found, features, jnp.asarray(weights), test_pairs(data))), facts

    scored(run, method, score)


def _lore(data: Preferences, votes: Votes, features: np.ndarray, config: RegularisedConfig) -> tuple[Fit, np.ndarray]:
    """Weights of all users [U K]: fitted for the seen, solved from context pairs for the unseen."""
    found = fit.regularised(features, *votes, data.num_users, config=config)
    weights = np.array(found.weights)
    unseen = np.flatnonzero(~data.seen)
    context = data.pairs("train", seen=False)
    own = context._replace(user=np.searchsorted(unseen, context.user))
    weights[unseen] = np.asarray(fit.adapt(found, features, own, len(unseen)))
    return found, weights


def _shared(data: Preferences, votes: Votes, features: np.ndarray, config: RegularisedConfig) -> tuple[Fit, np.ndarray]:
    found = fit.shared(features, *votes, data.num_users, config=config)
    return found, np.asarray(found.weights)


def _oracle(data: Preferences, votes: Votes, features: np.ndarray, config: RegularisedConfig) -> tuple[Fit, np.ndarray]:
    groups = group_numbers(data)
    assert groups is not None, "asked for only where there are groups"
    found = fit.per_group(features, *votes, groups, config=config)
    return found, np.asarray(found.weights)


if __name__ == "__main__":
    launch(run, __doc__ or "")
