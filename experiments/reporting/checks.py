"""Leakage checks of a run (`pref_jax.data.checks.leakage`), told in every report; `experiments.compare` comes first."""

from collections.abc import Sequence

from experiments.runner.test_labels import ANSWERS, GROUPS, TABLE, late, reads
from experiments.runner.workspace import Run, graph_pairs, load_data
from pref_jax.data.checks import leakage
from pref_jax.data.checks.leakage import Leak
from pref_jax.eval.reporting.report import Section, bullets
from pref_jax.files import read_json, write_json

FILE = "leaks.json"
# Methods whose rule is to know groups, or other people's answers, and what that is; no other may ask for them.
MAY_READ = {"group oracle": GROUPS, "oracle (features)": GROUPS, "leave-one-out majority": ANSWERS}
# What else opens the door: scores and reports, which no method sees.
REPORTS = (TABLE, "studies", "report on experts", "a reader of the finished run", "counts of the tables")


def checked(run: Run) -> list[Leak]:
    """What the checks say of the run's tables, as methods get them; made once and kept in SEED/leaks.json.

    Raises:
      UserError: for what is certainly wrong, as `leaks.check`.
    """
    path = run.folder / FILE
    if not path.exists():
        data = load_data(run)
        found = leakage.check(data, graph_pairs(run, data), seed=run.seed)
        write_json(path, [leak._asdict() for leak in found])
    return [Leak(**own) for own in read_json(path)]


def readers(run: Run) -> Leak:
    """Who opened the door to groups and test answers, and whether anybody did who may not, or too early."""
    lines, after = reads(run), late(run)
    asked = dict.fromkeys((line["reader"], line["what"]) for line in lines if line["reader"] not in REPORTS)
    strangers = list(dict.fromkeys(name for name, what in asked if MAY_READ.get(name) != what))
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


def everything(run: Run) -> list[Leak]:
    """The checks of the tables and of who read what."""
    return [*checked(run), readers(run)]


def section(runs: Sequence[Run]) -> Section:
    """The checks of all seeds as a chapter; what may leak is marked."""
    lines = [
        f"{'**may leak** ' if leak.found else ''}{leak.name}, seed {run.seed}: {leak.text}."
        for run in runs
        for leak in everything(run)
    ]
    return Section("Leakage checks", bullets(lines))


def notes(runs: Sequence[Run]) -> list[str]:
    """What may leak, for the table of a data set: one sentence for each check that found something in some seed."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for leak in everything(run):
            if leak.found:
                found.setdefault(leak.name, []).append(f"seed {run.seed}: {leak.text}")
    return [f"may leak, {name}: {'; '.join(texts)}" for name, texts in found.items()]
