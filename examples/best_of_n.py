"""Best of n: of several candidates of a language model, each user gets the one that they like best.

python examples/best_of_n.py
"""

from lore_text import BASE, made_up

import lore_jax

CANDIDATES = {
    "How long do I cook quinoa?": [
        "Twelve minutes.",
        "About twelve minutes, but it depends on the pot, the heat, and how you like it.",
        "Cook it for twelve minutes and let it stand for five.",
    ],
    "How long do I cook a carrot?": [
        "Well, that depends on how thick it is and whether you want it soft or with a bite.",
        "Eight minutes.",
        "Slice it and give it eight minutes or so.",
    ],
}


def main() -> None:
    """One call scores all candidates of all prompts for all users: equal texts are read once."""
    model = lore_jax.fit(made_up(), base=BASE)
    users, prompts, texts = [], [], []
    for user in (None, "user-0", "user-1"):
        for prompt, candidates in CANDIDATES.items():
            users += [user] * len(candidates)
            prompts += [prompt] * len(candidates)
            texts += candidates
    scores = iter(model.score(users, prompts, texts))
    for user in (None, "user-0", "user-1"):
        for prompt, candidates in CANDIDATES.items():
            best = max(candidates, key=lambda _: next(scores))
            print(f"{user or 'anybody'}: {prompt} {best}")


if __name__ == "__main__":
    main()
