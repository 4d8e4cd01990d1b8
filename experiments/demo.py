"""A live page within a minute: a small LoRe, pairs to vote on, and the service that shows them.

    python -m experiments.demo --workdir=runs/demo
    python -m experiments.demo --workdir=runs/mine --votes=votes.jsonl

Without votes the synthetic world is spoken in English words, so that people can read it; a few simulated people have
voted before, so that there is somebody to agree with. With votes, the pairs are those that were voted on. What was made
stays in the workdir, and the next call serves it again with all that was voted since. Stop it with Ctrl-C.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.studies.english_world import english, sentence
from pref_jax import cli
from pref_jax.cli_options import ENCODER, find_base
from pref_jax.data.messages import as_chat
from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.synthetic import world
from pref_jax.errors import UserError
from pref_jax.progress import log
from pref_jax.serve.store.records import Pair, Vote
from pref_jax.serve.store.store import Store

POOL, MOST_PAIRS, MAX_LENGTH = "demo", 240, 128
PEOPLE, EACH, AGAIN = 9, 24, 3
# Tastes that lie between the attributes, so that a person's own is learned little by little.
WORLD = world.WorldConfig(
    tastes="dirichlet",
    dirichlet_alpha=0.5,
    seen_users=80,
    unseen_users=0,
    pairs_per_user=12,
    train_prompts=60,
    test_prompts=30,
    test_pairs_per_user=1,
)


class Material(NamedTuple):
    """What a demo is made of: votes to fit to, pairs to ask about, and votes that simulated people gave on them."""

    votes: Any
    pairs: list[Pair]
    given: dict[str, list[Vote]]


def from_world(seed: int = 0) -> Material:
    """Votes on half of a world, pairs of the other half, and votes on some of these."""
    tables, truth, words = world.generate(WORLD), world.truth(WORLD), english()
    rows, rng = tables.responses.to_pylist(), np.random.default_rng(seed)
    prompts = [sentence(row["prompt"][0]["content"], words) for row in rows]
    texts = [sentence(row["text"], words) for row in rows]
    train = tables.pairs(("train", "validation"))
    names = tables.users["user_id"].to_pylist()
    votes = [
        {
            "user": names[user],
            "prompt": prompts[a],
            "chosen": texts[a],
            "rejected": texts[b],
        }
        for user, a, b in zip(train.user, train.chosen, train.rejected, strict=True)
        if texts[a] != texts[b]
    ]
    asked = _pairs_of(truth, texts, rng)
    pairs = [Pair(id=f"{a}-{b}", prompt=prompts[a], first=texts[a], second=texts[b]) for a, b in asked]
    given = {f"person {n + 1}": _votes_of(n, truth, asked, pairs, rng) for n in range(PEOPLE)}
    return Material(votes, pairs, given)


def _pairs_of(truth: world.Truth, texts: list[str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of answers to new prompts, either way round."""
    places = np.flatnonzero(truth.test)
    every = [
        (int(a), int(b)) if rng.random() < 0.5 else (int(b), int(a))
        for _, own in itertools.groupby(places, key=lambda place: truth.prompt[place])
        for a, b in itertools.combinations(own, 2)
        if texts[a] != texts[b]
    ]
    return every[:MOST_PAIRS]


def _votes_of(
    person: int, truth: world.Truth, asked: list[tuple[int, int]], pairs: list[Pair], rng: np.random.Generator
) -> list[Vote]:
    """What one simulated person said of some of the first pairs, and of a few of them again."""
    some = rng.permutation(2 * EACH)[:EACH].tolist()
    found = []
    for number, place in enumerate([*some, *some[:AGAIN]]):
        a, b = asked[place]
        gain = float(truth.tastes[person] @ (truth.levels[a] - truth.levels[b])) + rng.logistic(scale=0.4)
        choice = "tie" if abs(gain) < 0.25 else "first" if gain > 0 else "second"
        choice = str(rng.choice(["skip", "both_bad"])) if rng.random() < 0.05 else choice
        pair, seconds = pairs[place], round(float(rng.lognormal(1.7, 0.4)), 2)
        texts: dict[str, Any] = {"prompt": pair.prompt, "first": pair.first, "second": pair.second, "pair": pair.id}
        side = str(rng.choice(["left", "right"]))
        vote = Vote(
            id=f"demo-{person}-{number}", choice=choice, shown=side, asked="simulated", latency=seconds, **texts
        )
        found.append(vote)
    return found


def from_votes(path: str) -> Material:
    """Votes of a file or a data set, and the pairs that were voted on."""
    from pref_jax.data.sources.named import open_votes

    tables = open_votes(path).tables
    return Material(tables, voted_pairs(tables), {})


def voted_pairs(tables: Preferences, seed: int = 0, most: int = MOST_PAIRS) -> list[Pair]:
    """Some of the pairs that were voted on, each once and either way round; ids are the rows of the two responses."""
    own = tables.comparisons
    both = np.stack([own["chosen"].to_numpy(), own["rejected"].to_numpy()], 1)
    both = np.unique(np.sort(both, 1), axis=0)
    rng = np.random.default_rng(seed)
    found = rng.permuted(rng.permutation(both)[:most], axis=1)
    rows = {int(place): tables.responses.slice(int(place), 1).to_pylist()[0] for place in np.unique(found)}
    pairs = []
    for a, b in found.tolist():
        chat, first, second = as_chat(rows[a]["prompt"]), rows[a]["text"], rows[b]["text"]
        plain = len(chat) == 1 and set(chat[0]) == {"role", "content"} and chat[0]["role"] == "user"
        if first != second and first.strip() and second.strip():
            prompt = chat[0]["content"] if plain else chat
            pairs.append(Pair(id=f"{a}-{b}", prompt=prompt, first=first, second=second))
    return pairs


def prepare(workdir: Path, votes: str, base: str) -> None:
    """Makes the model and its store, unless both are there."""
    folder, store = workdir / "model", workdir / "votes.db"
    if folder.exists() and store.exists():
        return log(f"{workdir}: made before; delete it to start anew")
    begun = time.perf_counter()
    material = from_votes(votes) if votes else from_world()
    if not material.pairs:
        raise UserError(f"{votes}: has no pair of two different answers to one prompt; give other votes")
    import lore_jax

    model = lore_jax.fit(material.votes, base=find_base(base), max_length=MAX_LENGTH)
    workdir.mkdir(parents=True, exist_ok=True)
    store.unlink(missing_ok=True)
    with Store.open(str(store)) as opened:
        opened.add_pairs(POOL, material.pairs)
        for person, given in material.given.items():
            opened.add(person, given)
    # Last, so that what is there is whole.
    model.save(folder)
    log(f"{model}; {len(material.pairs)} pairs; made in {time.perf_counter() - begun:.0f} s")
    return None


def main(argv: list[str] | None = None) -> None:
    """The command."""
    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", "runs/demo", "folder of the model and the votes", flag_values=values)
    votes = flags.DEFINE_string("votes", "", "a file of votes, or NAME:PATH, in place of the world", flag_values=values)
    base = flags.DEFINE_string("base", ENCODER, "the transformer that reads texts", flag_values=values)
    port = flags.DEFINE_integer("port", 8000, "where to listen", flag_values=values)
    try:
        values(sys.argv if argv is None else argv)
        folder = Path(workdir.value)
        prepare(folder, votes.value, base.value)
    except (UserError, flags.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    address = f"http://127.0.0.1:{port.value}"
    log(f"vote at {address}/#user=me&pool={POOL}, and see the study at {address}/study")
    command = ["serve", str(folder / "model"), "--store", str(folder / "votes.db"), "--port", str(port.value)]
    sys.exit(cli.main(command))


if __name__ == "__main__":
    main()
