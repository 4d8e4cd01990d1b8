"""A process that votes without end, for those who kill it: what it says was stored must be there.

    python -m experiments.benchmarks.store_writer URL SEED

It prints `begun` once the store is open, `+ IDS` when votes were acknowledged, `? ID` before one is taken back, and
`- ID` when that was acknowledged. What a vote says follows from its id.
"""

import itertools
import random
import sys
import threading

from pref_jax.serve.store.records import CHOICES, Vote
from pref_jax.serve.store.store import Store

THREADS = 4
# Texts of all users come out of these many.
TEXTS = 12


def vote_of(name: str) -> Vote:
    """The vote of an id."""
    drawn = random.Random(name)
    first, second = drawn.sample(range(TEXTS), 2)
    choice = drawn.choice(CHOICES)
    strength = drawn.uniform(0.5, 3) if choice in CHOICES[:2] and drawn.random() < 0.5 else None
    prompt = drawn.choice(["How long?", [{"role": "user", "content": f"How long, {name}?"}]])
    texts = f"Answer {first}" * 40, f"Answer {second}"
    return Vote(id=name, prompt=prompt, first=texts[0], second=texts[1], choice=choice, strength=strength)


def user_of(name: str) -> str:
    """Whose vote has this id: one user is everybody's, so that threads meet."""
    return "all" if random.Random(f"user {name}").random() < 0.3 else f"user {name.split('-')[1]}"


def ids_of(seed: int, thread: int, batch: int) -> list[str]:
    """Ids of one call: one to three votes of one user."""
    first = f"{seed}-{thread}-{batch}-0"
    names = (f"{seed}-{thread}-{batch}-{place}" for place in itertools.count())
    same = (name for name in names if user_of(name) == user_of(first))
    return list(itertools.islice(same, random.Random(f"many {first}").choice((1, 1, 3))))


def write(url: str, seed: int) -> None:
    """Votes until it is killed."""
    store, saying = Store.open(url), threading.Lock()

    def say(line: str) -> None:
        with saying:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def vote(thread: int) -> None:
        for batch in itertools.count():
            names = ids_of(seed, thread, batch)
            store.add(user_of(names[0]), [vote_of(name) for name in names])
            say(f"+ {' '.join(names)}")
            if batch % 5 == 4:
                say(f"? {names[0]}")
                store.remove_vote(user_of(names[0]), names[0])
                say(f"- {names[0]}")

    say("begun")
    threads = [threading.Thread(target=vote, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
