"""CoPL from votes on texts: each user's embedding chooses experts inside the transformer.

    python examples/copl_votes.py

The votes are those of examples/lore_text.py: some like short answers, others long ones. Yours are a JSONL file of such
rows, and CoPL is best at many users who compared some of the same responses.
"""

import tempfile

from lore_text import BASE, made_up

import copl_jax
import pref_jax


def main() -> None:
    """What the README shows."""
    with tempfile.TemporaryDirectory() as folder:
        model = copl_jax.fit(made_up(), base=BASE, max_length=64, workdir=f"{folder}/run")  # if killed, it resumes
        print(model)
        prompt, answers = "How long do I cook rice?", ["4 minutes.", "It depends, but try some 4 minutes or so."]
        print(model.score("user-0", prompt, answers), model.score("user-1", prompt, answers))
        likes = [row | {"user": "bo"} for row in made_up() if row["user"] == "user-2"]
        print(model.add_votes("bo", likes[:3]).how)  # a new user: embedded by neighbours, nothing is trained
        model.save(f"{folder}/mine")
        print(pref_jax.load(f"{folder}/mine").rank("bo", prompt, answers))


if __name__ == "__main__":
    main()
