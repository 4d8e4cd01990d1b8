"""The table of several data sets as files: results, Markdown, LaTeX, report, pictures, and the page to publish."""

import datetime
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.methods import METHODS
from experiments.reporting import ceilings, checks, controls
from experiments.reporting.table import DataSet, block, by_pairs
from experiments.runner.cli import Config
from pref_jax.eval.figures import canvas, table_plots
from pref_jax.eval.reporting import report, results, table
from pref_jax.eval.reporting.table import Block
from pref_jax.files import read_json, write_json, write_text


def write(
    config: Config, workdir: Path, every: Sequence[DataSet], absent: Mapping[str, str], *, seconds: float
) -> None:
    """Writes `results.json`, `table.md`, `table.tex`, `plots/` and `report.md` of all data sets."""
    blocks = [block(own) for own in every]
    found = {
        "dataset": str(config.dataset),
        "datasets": {own.name: read_json(own.folder / "results.json") for own in every},
        "table": [table.as_json(one) for one in blocks],
        "controls": {own.name: controls.as_json(controls.measure(own.every)) for own in every},
        "ceilings": {own.name: ceilings.as_json(own.every) for own in every},
        "leaks": {
            own.name: {
                str(one.work.seed): [leak._asdict() for leak in checks.everything(one.work)] for one in own.every
            }
            for own in every
        },
        "left_out": dict(absent),
        "seconds_of_last_command": seconds,
        "versions": results.versions(),
    }
    write_json(workdir / "results.json", found)
    text = table.markdown(blocks)
    write_text(workdir / "table.md", text)
    told = _controls(every)
    write_text(workdir / "controls.md", told + "\n")
    write_text(workdir / "table.tex", table.latex(blocks))
    pictures = _pictures(every, blocks, workdir / "plots")
    write_text(workdir / "report.md", _report(str(config.dataset), text, told, every, absent, pictures, workdir))
    print(f"\n{text}\nresults, table, report and pictures: {workdir}", flush=True)


def _pictures(every: Sequence[DataSet], blocks: Sequence[Block], folder: Path) -> list[tuple[Path, str]]:
    uneven, bases = {}, {}
    for own, one in zip(every, blocks, strict=True):
        curves = by_pairs(own.every, [row.method for row in one.rows])
        if any(len(points) > 1 for points in curves.values()):
            uneven[one.title] = curves
            bases[one.title] = {row.method: row.against or row.method for row in one.rows}
    made = [
        ("seen_unseen", table_plots.seen_unseen(blocks), "Accuracy of seen and of unseen users."),
        ("seconds", table_plots.against_seconds(blocks), "Accuracy of unseen users against the time of one seed."),
    ]
    if uneven:
        caption = "Accuracy of seen users by the number of pairs they gave."
        made.insert(0, ("pairs", table_plots.against_pairs(uneven, bases), caption))
    return [(canvas.save(figure, folder / f"{name}.png"), caption) for name, figure, caption in made]


def _report(
    title: str,
    text: str,
    told: str,
    every: Sequence[DataSet],
    absent: Mapping[str, str],
    pictures: Sequence[tuple[Path, str]],
    workdir: Path,
) -> str:
    methods = dict.fromkeys(name for own in every for one in own.every for name in one.margins)
    parts = [f"# {title}", "## Scores", text]
    if absent:
        parts += ["## Left out", report.bullets(f"{name}: {why}" for name, why in absent.items())]
    known = (f"**{name}**" + (f": {METHODS[name].sentence}" if name in METHODS else "") for name in methods)
    parts += ["## What the rows mean", report.bullets(known), "## Pictures"]
    parts += [report.picture(workdir, path, caption) for path, caption in pictures]
    parts += ["## Controls", told, "## Leakage checks"]
    for own in every:
        parts += [f"### {own.config.dataset}", checks.section([one.work for one in own.every]).text]
    parts += ["## Each data set", report.bullets(f"[{own.config.dataset}]({own.name}/report.md)" for own in every)]
    parts += ["## Machine", _machine(results.versions())]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _controls(every: Sequence[DataSet]) -> str:
    """Controls and ceilings of each data set, the notes once."""
    parts = []
    for own in every:
        parts += [f"### {own.config.dataset}", controls.grid(controls.measure(own.every))]
        parts += [one.text for one in ceilings.sections(own.every)]
    return "\n\n".join([*parts, controls.NOTE])


def _machine(versions: Mapping[str, Any]) -> str:
    return report.bullets(f"{name}: {value}" for name, value in versions.items())


def publish(workdir: Path, path: Path, command: Sequence[str]) -> None:
    """Writes the finished table of `workdir` into the Markdown file `path`, its pictures beside it.

    Pictures, `table.tex` and `results.json`, but for each seed's own intervals, go into results/WORKDIR's name, beside
    `path`; links to them are relative.

    Args:
      workdir: of a finished run.
      path: such as RESULTS.md; an older one is replaced.
      command: the module and its flags, to be run by `python -m`.
    """
    found, folder = read_json(workdir / "results.json"), path.parent / "results" / workdir.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (workdir / "table.tex", *sorted((workdir / "plots").glob("*.png"))):
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "results.json", _without_intervals(found))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    made = f"Made on {today} by\n\n```bash\npython -m {shlex.join(command)}\n```"
    minutes = found["seconds_of_last_command"] / 60
    took = (
        f"The command that ended the run took {minutes:.0f} minutes. Each program is compiled once and kept: its "
        "compilation counts for the first data set, seed and method that needed it."
    )
    parts = [f"# {found['dataset']}", made, took, _machine(found["versions"])]
    parts += ["## The table", (workdir / "table.md").read_text(encoding="utf-8").strip("\n")]
    beside = {name: os.path.relpath(folder / name, path.parent) for name in ("table.tex", "results.json")}
    parts += [f"In LaTeX: [table.tex]({beside['table.tex']}); all figures: [results.json]({beside['results.json']})."]
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
    parts += ["## Controls", (workdir / "controls.md").read_text(encoding="utf-8").strip("\n")]
    parts += ["## Leakage checks", told, "## Pictures"]
    captions = {"pairs": "Accuracy by pairs per user", "seen_unseen": "Seen against unseen users", "seconds": "Time"}
    parts += [
        report.picture(path.parent, folder / f"{name}.png", caption)
        for name, caption in captions.items()
        if (folder / f"{name}.png").exists()
    ]
    write_text(path, "\n\n".join(parts) + "\n")


def _without_intervals(found: Mapping[str, Any]) -> dict[str, Any]:
    """The results with one number for each metric of a seed: its interval over users makes up most of the file."""
    datasets = {
        name: {**own, "rows": [{key: row[key] for key in row if key != "intervals"} for row in own["rows"]]}
        for name, own in found["datasets"].items()
    }
    return {**found, "datasets": datasets}
