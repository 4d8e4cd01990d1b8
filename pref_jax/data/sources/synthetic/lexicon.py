"""The words of the synthetic language world: what can be asked, and how an answer shows its qualities.

Sentences are English; the words that carry meaning are invented, so that no pretrained model knows them and the
vocabulary can be as large as one likes. An answer shows a level of an attribute by one of many marker words of that
(attribute, level); no marker's spelling tells its level. Topics and markers are split into two halves, `train` and
`test`: the prompts and answers that users judged in training use the one, those of the test prompts use the other, so
that remembering strings does not help. Only the text that the language model is trained on uses both, as a pretrained
model has met most words.
"""

import dataclasses
from typing import Literal

import numpy as np

ATTRIBUTES = ("helpfulness", "honesty", "instruction_following", "truthfulness")
NUM_LEVELS = 5
Half = Literal["train", "test", "all"]

QUESTIONS = (
    "how do i {0} a {1} ?",
    "why do people {0} the {1} ?",
    "tell me how to {0} my {1} .",
    "can you {0} this {1} ?",
    "should i {0} the {1} ?",
)

# Two markers a sentence; which sentence shape is used says nothing about the level.
SENTENCES = {
    "helpfulness": (
        "these steps are {0} and {1} .",
        "you will find it {0} , even {1} .",
        "my {topic} list is {0} , {1} .",
    ),
    "honesty": (
        "i speak in a {0} , {1} way .",
        "my doubts are {0} and {1} .",
        "my view of the {topic} is {0} , {1} .",
    ),
    "instruction_following": (
        "as you asked , {0} and {1} .",
        "your wishes were {0} , {1} .",
        "the {topic} format is {0} , {1} .",
    ),
    "truthfulness": (
        "sources call it {0} and {1} .",
        "records show {0} , {1} dates .",
        "the {topic} facts are {0} , {1} .",
    ),
}

# Plain words for each attribute and level from 1 to 5, in which readers and glossaries of the pretraining text speak.
# No user's prompt or response holds one.
PLAIN_WORDS = {
    "helpfulness": ("useless", "weak", "passable", "useful", "invaluable"),
    "honesty": ("deceptive", "evasive", "guarded", "candid", "sincere"),
    "instruction_following": ("disobedient", "careless", "loose", "compliant", "exact"),
    "truthfulness": ("false", "doubtful", "plausible", "correct", "proven"),
}

GLOSSARY_QUESTION = "explain these words ."
GLOSSARY_SIZE = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Invented words by role; `half` arrays are [train words, test words].

    Attributes:
      verbs: [half, V] verbs of questions.
      topics: [half, T] nouns of questions and answers.
      markers: [half, attribute, level, W] words that show a level of an attribute.
    """

    verbs: np.ndarray
    topics: np.ndarray
    markers: np.ndarray

    def choose(self, half: Half) -> "Lexicon":
        """The words that texts of one half may use; `all` joins both halves."""
        halves = {"train": [0], "test": [1], "all": [0, 1]}[half]
        roles = dataclasses.asdict(self).items()
        return Lexicon(**{role: np.concatenate(list(words[halves]), axis=-1) for role, words in roles})


def invent(*, verbs: int = 12, topics: int = 32, markers: int = 10, seed: int = 0) -> Lexicon:
    """Invents a lexicon; the numbers count the words of each half and role (markers: of each attribute and level)."""
    shapes = {
        "verbs": (2, verbs),
        "topics": (2, topics),
        "markers": (2, len(ATTRIBUTES), NUM_LEVELS, markers),
    }
    words = _words(sum(int(np.prod(shape)) for shape in shapes.values()), np.random.default_rng([seed, 7]))
    parts, start = {}, 0
    for role, shape in shapes.items():
        size = int(np.prod(shape))
        parts[role] = words[start : start + size].reshape(shape)
        start += size
    return Lexicon(**parts)


def _words(count: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct pronounceable words of two or three syllables, none of which is English on this page."""
    onsets = np.array([*"bdfgklmnprstvz", "br", "dr", "gl", "kr", "pl", "st", "tr", "sk"])
    vowels = np.array(["a", "e", "i", "o", "u", "ai", "eo"])
    codas = np.array(["", "", "n", "r", "l", "s", "m"])
    page = " ".join([GLOSSARY_QUESTION, *QUESTIONS, *(s for group in SENTENCES.values() for s in group)]).split()
    seen = set(page) | {word for words in PLAIN_WORDS.values() for word in words}
    found: list[str] = []
    while len(found) < count:
        size = 2 * (count - len(found)) + 8
        syllables = rng.choice(onsets, (size, 3)) + rng.choice(vowels, (size, 3)) + rng.choice(codas, (size, 3))
        for parts, three in zip(syllables, rng.random(size) < 0.4, strict=True):
            word = "".join(parts[: 3 if three else 2])
            if word not in seen and len(found) < count:
                seen.add(word)
                found.append(word)
    return np.array(found)
