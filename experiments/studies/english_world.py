"""The synthetic world in English words, so that people can read it, and transformers that have read English too.

Words of the world are invented, and mean nothing to anybody who was not taught them.
"""

import dataclasses

import pyarrow as pa

from pref_jax.data.preferences import Preferences
from pref_jax.data.sources.synthetic import lexicon

# Words of rising level for each attribute; texts are made of them in place of the world's invented markers.
LEVELS = {
    "helpfulness": "useless hopeless pointless, weak poor thin, passable fair usable, useful handy practical, "
    "invaluable superb excellent",
    "honesty": "deceptive sly shady, evasive vague slippery, guarded reserved cautious, candid open frank, "
    "sincere honest heartfelt",
    "instruction_following": "disobedient wayward unasked, careless sloppy hasty, loose rough partial, "
    "compliant close faithful, exact precise complete",
    "truthfulness": "false wrong untrue, doubtful shaky dubious, plausible likely credible, correct accurate right, "
    "proven confirmed verified",
}
VERBS = "fix clean sell paint store share move choose carry keep buy build"
NOUNS = (
    "bicycle garden kettle violin tent lamp sofa camera boat oven roof clock bridge piano ladder mirror carpet fence "
    "stove engine guitar pillow basket wagon blanket drawer hammer candle shelf window bucket radio"
)


def english() -> dict[str, list[str]]:
    """English words for each invented one; the second is for where the first would come twice."""
    words, found = lexicon.invent().choose("all"), {}
    for attribute, levels in enumerate(LEVELS.values()):
        for level, three in enumerate(levels.split(", ")):
            own = three.split() * 2
            for place, word in enumerate(words.markers[attribute, level]):
                found[word] = own[place % 3 :][:2]
    for invented, real in ((words.verbs, VERBS.split()), (words.topics, NOUNS.split())):
        found |= {word: [real[place % len(real)]] * 2 for place, word in enumerate(invented)}
    return found


def sentence(text: str, words: dict[str, list[str]]) -> str:
    """A text of the world in English, as it is written."""
    found, last = [], ""
    for word in text.split():
        one, other = words.get(word, [word, word])
        found.append(other if one == last else one)
        last = one if word in words else last
    parts = " ".join(found).replace(" .", ".").replace(" ,", ",").replace(" ?", "?")
    return ". ".join(part[:1].upper() + part[1:] for part in parts.split(". ")).replace(" i ", " I ")


def in_english(tables: Preferences) -> Preferences:
    """Tables of a world with all texts in English; some of them may then be the same."""
    words, responses = english(), tables.responses
    rows = responses.to_pylist()
    prompts = [
        [{**message, "content": sentence(message["content"], words)} for message in row["prompt"]] for row in rows
    ]
    columns = {"prompt": prompts, "text": [sentence(row["text"], words) for row in rows]}
    for name, values in columns.items():
        place = responses.schema.get_field_index(name)
        field = responses.schema.field(place)
        responses = responses.set_column(place, field, pa.array(values, field.type))
    return dataclasses.replace(tables, responses=responses)
