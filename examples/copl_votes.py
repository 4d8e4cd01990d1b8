"""CoPL from votes on texts: users who chose the same end up close, and their embeddings choose the experts that score.

python examples/copl_votes.py

The votes are made up: some like short answers, others long ones. Yours are a JSONL file of such rows; CoPL is at its
best where many users compared some of the same responses.
"""

import tempfile

from lore_text import BASE, LONG, SHORT, THINGS

import copl_jax
import pref_jax


def made_up(user: int, things: tuple[str, ...] = THINGS) -> list[dict[str, str]]:
    """A user's votes on the same answers that the others compare."""
    texts = (SHORT, LONG) if user % 2 == 0 else (LONG, SHORT)
    sides = [[text.format(n=n) for text in texts] for n in range(3, 3 + len(things))]
    rows = [{"prompt": f"How long do I cook {thing}?", "user": f"user-{user}"} for thing in things]
    return [row | {"chosen": one, "rejected": other} for row, (one, other) in zip(rows, sides, strict=True)]


def main() -> None:
    """What the README shows."""
    with tempfile.TemporaryDirectory() as folder:
        votes = [vote for user in range(8) for vote in made_up(user)]
        model = copl_jax.fit(votes, base=BASE, max_length=64, workdir=f"{folder}/run")  # killed, it resumes
        print(model)
        prompt, answers = "How long do I cook millet?", ["Ten minutes.", LONG.format(n=10)]
        print(model.rank("user-0", prompt, answers), model.rank("user-1", prompt, answers))
        print(model.add_votes("user-8", made_up(8, THINGS[:3])).how)  # a new user: nothing is trained
        model.save(f"{folder}/mine")
        print("user-8:", pref_jax.load(f"{folder}/mine").rank("user-8", prompt, answers))


if __name__ == "__main__":
    main()
