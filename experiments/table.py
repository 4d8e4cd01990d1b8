"""The table of several data sets: gathers their scores, compares methods on the same users, writes and publishes it."""

import datetime
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import checks
from experiments.cli import Config
from experiments.lore_methods import FITS
from experiments.lore_methods import SHARED as SHARED_FEATURES
from experiments.summary import MEANINGS
from experiments.truth import Answered
from pref_jax.errors import UserError
from pref_jax.eval import canvas, report, results, table, table_plots
from pref_jax.eval.accuracy import Interval, student_interval, user_accuracy
from pref_jax.eval.table import SIDES, Block, Row
from pref_jax.files import read_json, write_json, write_text

SHARED = "shared reward"
# Lower ends of the numbers of pairs that seen users are sorted by.
COUNTS = (1, 2, 4, 8, 16, 32)
FEWEST = 5


class DataSet(NamedTuple):
    """One of the data sets: its name in the config, its config, its folder, its seeds' scores beside the answers."""

    name: str
    config: Config
    folder: Path
    every: list[Answered]


def present(config: Config) -> tuple[dict[str, Config], dict[str, str]]:
    """The config's data sets whose files are named, and for each other why it is left out.

    Raises:
      UserError: if none is left.
    """
    there, absent = {}, {}
    for name in config.datasets:
        own = config.datasets[name].copy_and_resolve_references()
        if own.source.get("path", None) == "":
            mend = f"--config.datasets.{name}.source.path=DIR"
            absent[str(own.dataset)] = f"no folder was named for its files ({mend})"
        else:
            there[name] = own
    if not there:
        raise UserError("config.datasets: " + "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return there, absent


def against(method: str, methods: Sequence[str]) -> str:
    """The shared reward that a method is compared with: on the same frozen features, or on the adapted transformer.

    The other of the two where only that one ran; "" for the shared reward itself, and where there is none.
    """
    frozen = method in FITS or method.endswith("(features)")
    wanted = (SHARED_FEATURES, SHARED) if frozen else (SHARED, SHARED_FEATURES)
    found = next((name for name in wanted if name in methods), "")
    return "" if found == method or method in (SHARED, SHARED_FEATURES) else found


def block(own: DataSet) -> Block:
    """The rows of one data set; methods that some seed lacks are named in a note and left out."""
    methods = [name for name in own.config.methods if all(name in one.margins for one in own.every)]
    partners = {name: other for name in methods if (other := against(name, methods))}
    sides = {
        side: table.compared(values, _asked(own.every, seen=side == "seen"), partners)
        for side in SIDES
        if (values := _accuracies(own.every, methods, seen=side == "seen"))
    }
    rows = [
        Row(
            method=name,
            against=partners.get(name, ""),
            accuracy={side: found[name] for side, (found, _) in sides.items()},
            gap={side: gaps[name] for side, (_, gaps) in sides.items() if name in gaps},
            seconds=float(np.mean([one.facts[name]["seconds"] for one in own.every])),
            parameters=_mean_fact(own.every, name, "parameters_per_user"),
            context=_mean_fact(own.every, name, "context_pairs"),
        )
        for name in methods
    ]
    lacking = [name for name in own.config.methods if name not in methods]
    notes = [f"not run, for want of what they need: {', '.join(lacking)}"] if lacking else []
    return Block(
        title=str(own.config.dataset),
        seeds=[one.run.seed for one in own.every],
        rows=rows,
        notes=notes + checks.notes([one.run for one in own.every]),
    )


def _accuracies(every: Sequence[Answered], methods: Sequence[str], *, seen: bool) -> dict[str, list[np.ndarray]]:
    """Method -> for each seed the accuracy of each user [U] of that kind with test pairs; empty without users."""
    asked = [_with_test_pairs(one) & (one.data.seen == seen) for one in every]
    if not all(members.any() for members in asked):
        return {}
    return {
        name: [_user_accuracy(one, name)[members] for one, members in zip(every, asked, strict=True)]
        for name in methods
    }


def _asked(every: Sequence[Answered], *, seen: bool) -> list[np.ndarray]:
    """For each seed the ids [U] of the users of `_accuracies`."""
    return [_ids(one)[_with_test_pairs(one) & (one.data.seen == seen)] for one in every]


def _ids(one: Answered) -> np.ndarray:
    return np.array(one.data.users["user_id"].to_pylist(), str)


def _with_test_pairs(one: Answered) -> np.ndarray:
    return np.bincount(one.pairs.user, minlength=one.data.num_users) > 0


def _user_accuracy(one: Answered, method: str) -> np.ndarray:
    return user_accuracy(one.margins[method], one.pairs.user, one.data.num_users).accuracy


def _mean_fact(every: Sequence[Answered], method: str, name: str) -> float | str | None:
    values = [one.facts[method].get(name) for one in every]
    numbers = [value for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if len(numbers) == len(values) else values[0]


def by_pairs(every: Sequence[Answered], methods: Sequence[str]) -> dict[str, dict[int, Interval]]:
    """Method -> {training pairs: accuracy of the seen users who gave so many}, numbers sorted into those of `COUNTS`.

    All seeds' users together, who stands in several of them with the mean of theirs; the interval over users. Kinds of
    under `FEWEST` users are left out.
    """
    found: dict[str, dict[int, Interval]] = {name: {} for name in methods}
    for low, high in zip(COUNTS, (*COUNTS[1:], np.inf), strict=True):
        members = [_gave(one, low, high) for one in every]
        ids = [_ids(one)[own] for one, own in zip(every, members, strict=True)]
        number = np.unique(np.concatenate(ids), return_inverse=True)[1]
        if number.max(initial=-1) + 1 < FEWEST:
            continue
        for name in methods:
            values = [_user_accuracy(one, name)[own] for one, own in zip(every, members, strict=True)]
            own = np.bincount(number, weights=np.concatenate(values)) / np.bincount(number)
            found[name][low] = student_interval(own, over="users")
    return found


def _gave(one: Answered, low: float | int, high: float | int) -> np.ndarray:
    """bool [U]: seen users with test pairs who gave `low` to under `high` answers."""
    known = one.data.pairs(("train", "validation"), seen=True)
    given = np.bincount(known.user, minlength=one.data.num_users)
    return one.data.seen & _with_test_pairs(one) & (given >= low) & (given < high)


def write(
    config: Config, workdir: Path, every: Sequence[DataSet], absent: Mapping[str, str], *, seconds: float
) -> None:
    """Writes `results.json`, `table.md`, `table.tex`, `plots/` and `report.md` of all data sets."""
    blocks = [block(own) for own in every]
    found = {
        "dataset": str(config.dataset),
        "datasets": {own.name: read_json(own.folder / "results.json") for own in every},
        "table": [table.as_json(one) for one in blocks],
        "leaks": {
            own.name: {str(one.run.seed): [leak._asdict() for leak in checks.everything(one.run)] for one in own.every}
            for own in every
        },
        "left_out": dict(absent),
        "seconds_of_last_command": seconds,
        "versions": results.versions(),
    }
    write_json(workdir / "results.json", found)
    text = table.markdown(blocks)
    write_text(workdir / "table.md", text)
    write_text(workdir / "table.tex", table.latex(blocks))
    pictures = _pictures(every, blocks, workdir / "plots")
    write_text(workdir / "report.md", _report(str(config.dataset), text, every, absent, pictures, workdir))
    print(f"\n{text}\nresults, table, report and pictures: {workdir}", flush=True)


def _pictures(every: Sequence[DataSet], blocks: Sequence[Block], folder: Path) -> list[tuple[Path, str]]:
    uneven = {}
    for own, one in zip(every, blocks, strict=True):
        curves = by_pairs(own.every, [row.method for row in one.rows])
        if any(len(points) > 1 for points in curves.values()):
            uneven[one.title] = curves
    made = [
        ("seen_unseen", table_plots.seen_unseen(blocks), "Accuracy of seen against that of unseen users."),
        ("seconds", table_plots.against_seconds(blocks), "Accuracy of unseen users against the time of one seed."),
    ]
    if uneven:
        caption = "Accuracy of seen users by the number of pairs they gave."
        made.insert(0, ("pairs", table_plots.against_pairs(uneven), caption))
    return [(canvas.save(figure, folder / f"{name}.png"), caption) for name, figure, caption in made]


def _report(
    title: str,
    text: str,
    every: Sequence[DataSet],
    absent: Mapping[str, str],
    pictures: Sequence[tuple[Path, str]],
    workdir: Path,
) -> str:
    methods = dict.fromkeys(name for own in every for one in own.every for name in one.margins)
    parts = [f"# {title}", "## Scores", text]
    if absent:
        parts += ["## Left out", report.bullets(f"{name}: {why}" for name, why in absent.items())]
    known = (f"**{name}**" + (f": {MEANINGS[name]}" if name in MEANINGS else "") for name in methods)
    parts += ["## What the rows mean", report.bullets(known), "## Pictures"]
    parts += [report.picture(workdir, path, caption) for path, caption in pictures]
    parts += ["## Leakage checks"]
    for own in every:
        parts += [f"### {own.config.dataset}", checks.section([one.run for one in own.every]).text]
    parts += ["## Each data set", report.bullets(f"[{own.config.dataset}]({own.name}/report.md)" for own in every)]
    parts += ["## Machine", _machine(results.versions())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _machine(versions: Mapping[str, Any]) -> str:
    return report.bullets(f"{name}: {value}" for name, value in versions.items())


def publish(workdir: Path, path: Path, command: Sequence[str]) -> None:
    """Writes the finished table of `workdir` into the Markdown file `path`, its pictures beside it.

    Pictures and `table.tex` go into results/WORKDIR's name, beside `path`; links to them are relative.

    Args:
      workdir: of a finished run.
      path: such as RESULTS.md; an older one is replaced.
      command: the module and its flags, to be run by `python -m`.
    """
    found, folder = read_json(workdir / "results.json"), path.parent / "results" / workdir.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (workdir / "table.tex", *sorted((workdir / "plots").glob("*.png"))):
        shutil.copyfile(file, folder / file.name)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    made = f"Made on {today} by\n\n```bash\npython -m {shlex.join(command)}\n```"
    minutes = found["seconds_of_last_command"] / 60
    took = (
        f"The command that ended the run took {minutes:.0f} minutes. Each program is compiled once and kept: its "
        "compilation counts for the first data set, seed and method that needed it."
    )
    parts = [f"# {found['dataset']}", made, took, _machine(found["versions"])]
    parts += ["## The table", (workdir / "table.md").read_text(encoding="utf-8").strip("\n")]
    parts += [f"In LaTeX: [table.tex]({os.path.relpath(folder / 'table.tex', path.parent)})."]
    if found["left_out"]:
        parts += ["Left out: " + "; ".join(f"{name}, {why}" for name, why in found["left_out"].items()) + "."]
    leaks = [
        f"{name}, seed {seed}, {leak['name']}: {leak['text']}"
        for name, seeds in found["leaks"].items()
        for seed, own in seeds.items()
        for leak in own
        if leak["found"]
    ]
    told = report.bullets(leaks) if leaks else "The leakage checks found nothing in any data set and seed."
    parts += ["## Leakage checks", told, "## Pictures"]
    captions = {"pairs": "Accuracy by pairs a user", "seen_unseen": "Seen against unseen users", "seconds": "Time"}
    parts += [
        report.picture(path.parent, folder / f"{name}.png", caption)
        for name, caption in captions.items()
        if (folder / f"{name}.png").exists()
    ]
    write_text(path, "\n\n".join(parts) + "\n")
