"""Leakage checks of a run (`pref_jax.data.checks.leakage`), told in every report; `experiments.compare` comes first."""

from collections.abc import Sequence

from experiments.methods import ANSWERS, METHODS
from experiments.runner.test_labels import TABLE, Answered, late, reads
from experiments.runner.workspace import Workspace
from pref_jax.data.checks import leakage
from pref_jax.data.checks.leakage import Leak
from pref_jax.data.text import same_tokens
from pref_jax.eval.reporting.report import Section, bullets
from pref_jax.files import read_json, write_json

FILE = "leaks.json"
# What else opens the door: scores and reports, which no method sees.
REPORTS = (TABLE, "studies", "report on experts", "a reader of the finished run", "counts of the tables")


def checked(work: Workspace) -> list[Leak]:
    """What the checks say of the run's tables, as methods get them; made once and kept in SEED/leaks.json.

    Raises:
      UserError: for what is certainly wrong, as `leaks.check`.
    """
    path = work.folder / FILE
    if not path.exists():
        data = work.data
        found = leakage.check(data, work.graph_pairs(), seed=work.seed)
        write_json(path, [leak._asdict() for leak in found])
    return [Leak(**own) for own in read_json(path)]


def readers(work: Workspace) -> Leak:
    """Who opened the door to groups and test answers, and whether anybody did who may not, or too early."""
    lines, after = reads(work), late(work)
    asked = dict.fromkeys((line["reader"], line["what"]) for line in lines if line["reader"] not in REPORTS)
    strangers = list(dict.fromkeys(name for name, what in asked if name not in METHODS or METHODS[name].reads != what))
    parts = []
    for what in dict.fromkeys(line["what"] for line in lines):
        names = dict.fromkeys(line["reader"] for line in lines if line["what"] == what)
        parts.append(f"{what} were read by: {', '.join(names)}")
    first = next((line for line in lines if line["reader"] == TABLE), None)
    if first is not None:
        parts.append(f"for the table first at {first['time']}, when {len(first['scored'])} methods had their scores")
    if strangers:
        parts.append(f"{', '.join(strangers)} should not have read what they read")
    if after:
        parts.append(f"scored, or scored otherwise, after the table's answers had been read: {', '.join(after)}")
    numbers = {"strangers": strangers, "late": after, "times": sum(line["what"] == ANSWERS for line in lines)}
    return Leak("groups and test answers", bool(strangers or after), "; ".join(parts), numbers)


def everything(work: Workspace) -> list[Leak]:
    """The checks of the tables and of who read what."""
    return [*checked(work), readers(work)]


def left_out(works: Sequence[Workspace]) -> list[str]:
    """For each seed, how many votes stand in no score because the transformer cannot tell their sides apart."""
    return [f"seed {work.seed}: {note}" for work in works if (note := same_tokens.told(work.data))]


def section(works: Sequence[Workspace]) -> Section:
    """The checks of all seeds as a chapter; what may leak is marked."""
    lines = [
        f"{'**may leak** ' if leak.found else ''}{leak.name}, seed {work.seed}: {leak.text}."
        for work in works
        for leak in everything(work)
    ]
    return Section("Leakage checks", bullets(lines))


def told(every: Sequence[Answered]) -> list[str]:
    """What the data's split left out or could not do, and which methods had nothing to choose by."""
    found: dict[str, list[str]] = {}
    for one in every:
        for text in one.data.meta.get("told", ()):
            found.setdefault(text, []).append(str(one.work.seed))
        for name, facts in one.facts.items():
            if "fallback" in facts:
                found.setdefault(f"{name}: {facts['fallback']}", []).append(str(one.work.seed))
    return [f"{text} (seed {', '.join(seeds)})" for text, seeds in found.items()]


def notes(works: Sequence[Workspace]) -> list[str]:
    """What may leak, for the table of a data set: one sentence for each check that found something in some seed."""
    found: dict[str, list[str]] = {}
    for work in works:
        for leak in everything(work):
            if leak.found:
                found.setdefault(leak.name, []).append(f"seed {work.seed}: {leak.text}")
    return [f"may leak, {name}: {'; '.join(texts)}" for name, texts in found.items()]
