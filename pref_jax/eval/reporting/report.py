"""Tables for people: markdown for `report.md`, aligned text for the terminal."""

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pref_jax.eval.metrics import Interval, is_loss
from pref_jax.eval.reporting.results import by_method, metric_names
from pref_jax.files import write_text

MISSING = "–"


def table(
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] | None = None,
    *,
    style: Literal["markdown", "plain"] = "markdown",
) -> str:
    """Methods down, metrics across, mean ± half of the 95 % interval; what ± is over is said below.

    Args:
      rows: rows of `results.json`.
      metrics: columns, in order; by default the accuracies that occur. Log-losses are shown in nats with three
        decimals, all others in percent with one.
      style: "markdown", or "plain" for the terminal.
    """
    names = list(metric_names(rows) if metrics is None else metrics)
    summary = by_method(rows)
    lines = [["method", *names]]
    lines += [[method, *(cell(name, values.get(name)) for name in names)] for method, values in summary.items()]
    note = _note(names, summary)
    if style == "markdown":
        return f"{grid(lines)}\n\n{escape(note)}\n"
    return f"{plain(lines)}\n\n{note}\n"


def across(found: Sequence[Mapping[str, Any]], metric: str, methods: Sequence[str] | None = None) -> str:
    """One metric in markdown: data sets down, methods across, cells and note as in `table`; – where not measured.

    Args:
      found: what `read_results` gives, one for each data set.
      metric: such as "seen/accuracy".
      methods: columns, in order; by default all that occur.
    """
    every = {str(results["dataset"]): by_method(results["rows"]) for results in found}
    if methods is None:
        methods = list(dict.fromkeys(method for summary in every.values() for method in summary))
    lines = [[metric, *methods]]
    for dataset, summary in every.items():
        lines.append([dataset, *(cell(metric, summary.get(method, {}).get(metric)) for method in methods)])
    cells = {
        f"{method} ({dataset})": values for dataset, summary in every.items() for method, values in summary.items()
    }
    return f"{grid(lines)}\n\n{escape(_note([metric], cells))}\n"


class Section(NamedTuple):
    """A chapter of a report: heading, markdown, and (PNG file, caption) of its pictures."""

    title: str
    text: str
    plots: Sequence[tuple[str | Path, str]] = ()


def write_report(
    workdir: str | Path,
    results: Mapping[str, Any],
    *,
    title: str,
    meanings: Mapping[str, str],
    findings: Sequence[str] = (),
    plots: Sequence[tuple[str | Path, str]] = (),
    metrics: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Writes `report.md` into `workdir`: scores, what each row means, findings, pictures, time and machine.

    Args:
      workdir: folder of the run.
      results: what `read_results` or `write_results` gives.
      title: heading of the page.
      meanings: for each method one sentence on what the row is; methods without one are listed by name alone.
      findings: sentences, in order of importance.
      plots: (PNG file as `plots.save` returned it, caption) each; embedded by its path relative to `workdir`.
      metrics: columns of the table, as in `table`; groups get a table of their own, so do log-loss and calibration.
      sections: further chapters, after the findings.

    Returns:
      The path of the report.
    """
    rows = results["rows"]
    by_group = [name for name in metric_names(rows, with_groups=True) if "/group/" in name]
    parts = [f"# {title}", f"Data set: {results['dataset']}.", "## Scores", table(rows, metrics)]
    if by_group:
        parts += ["### By group", table(rows, by_group)]
    sureness = [f"{side}/{kind}" for side in ("seen", "unseen") for kind in ("log_loss", "calibration_error")]
    sureness = [name for name in sureness if any(name in row["metrics"] for row in rows)]
    if sureness:
        parts += ["### Log-loss and calibration", table(rows, sureness)]
    methods = dict.fromkeys(row["method"] for row in rows)
    parts += [
        "## What the rows mean",
        bullets(f"**{m}**" + (f": {meanings[m]}" if m in meanings else "") for m in methods),
    ]
    if findings:
        parts += ["## Findings", bullets(findings)]
    for section in sections:
        pictures = (picture(Path(workdir), path, caption) for path, caption in section.plots)
        parts += [f"## {section.title}", section.text, *pictures]
    if plots:
        parts += ["## Pictures", *(picture(Path(workdir), path, caption) for path, caption in plots)]
    parts += ["## Time and machine", grid(_times(rows))]
    parts += [bullets(f"{name}: {value}" for name, value in results["versions"].items())]
    path = Path(workdir) / "report.md"
    write_text(path, "\n\n".join(part.strip("\n") for part in parts if part) + "\n")
    return path


def duration(seconds: float | int) -> str:
    """Seconds in the unit that people use: `5.2 ms`, `31.0 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60:02d} min"


def cell(name: str, value: Interval | None) -> str:
    """A metric in percent, a loss as it is, with its interval where it has one."""
    if value is None:
        return MISSING
    scale, digits = (1, 3) if is_loss(name) else (100, 1)
    text = f"{scale * value.mean:.{digits}f}"
    if value.low is None or value.high is None or value.half_width is None:
        return text
    if _is_cut(value):
        return f"{text} [{scale * value.low:.{digits}f}, {scale * value.high:.{digits}f}]"
    return f"{text} ± {scale * value.half_width:.{digits}f}"


def plus_minus(value: Interval | None, *, scale: int = 1, digits: int = 1, sign: str = "") -> str:
    """A mean and half of its interval, where it has one.

    Args:
      value: None where nothing was measured.
      scale: 100 for percent and points.
      digits: after the point.
      sign: "+" where gains are told.

    Example:
      >>> plus_minus(Interval(0.25, 0.125, 0.375, 5, "seeds"), scale=100, sign="+")
      '+25.0 ± 12.5'
    """
    if value is None:
        return MISSING
    half = "" if value.half_width is None else f" ± {scale * value.half_width:.{digits}f}"
    return f"{scale * value.mean:{sign}.{digits}f}{half}"


def _is_cut(value: Interval) -> bool:
    """Whether the interval does not lie evenly around its mean, since fractions end at 0 and 1."""
    return value.low is not None and value.high is not None and abs(value.low + value.high - 2 * value.mean) > 1e-6


def _note(names: Sequence[str], summary: Mapping[str, Mapping[str, Interval]]) -> str:
    units = []
    if any(not is_loss(name) and not name.endswith("calibration_error") for name in names):
        units.append("Accuracies in percent.")
    if any(name.endswith("calibration_error") for name in names):
        units.append("Calibration errors in percent.")
    if any(is_loss(name) for name in names):
        units.append("Log-losses in nats.")
    spans: dict[str, list[str]] = {}
    for method, values in summary.items():
        for over in dict.fromkeys(values[n].over for n in names if n in values and values[n].half_width is not None):
            spans.setdefault(over, []).append(method)
    if not spans:
        return " ".join([*units, "No intervals: of one seed, or of too few users."])
    # What most methods share is said once, the others by name.
    main = max(spans, key=lambda over: len(spans[over]))
    others = [f"over {over} for {', '.join(methods)}" for over, methods in spans.items() if over != main]
    exception = f" ({'; '.join(others)})" if others else ""
    cut = any(_is_cut(values[n]) for values in summary.values() for n in names if n in values)
    ends = "; in brackets its ends, where 0 or 100 cuts it off" if cut else ""
    return " ".join([*units, f"± is half of the 95 % interval over {main}{exception}{ends}."])


def escape(text: str) -> str:
    """Text for a cell of a Markdown table: one line, no bars."""
    return " ".join(text.replace("|", "\\|").split())


def _pad(lines: list[list[str]]) -> list[list[str]]:
    """Equal widths down each column: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]


def grid(lines: list[list[str]]) -> str:
    """A Markdown table, the first line its head; cells are padded, numbers stand at the right."""
    head, *body = _pad([[escape(cell) for cell in line] for line in lines])
    rule = ["-" * len(cell) if i == 0 else "-" * (len(cell) - 1) + ":" for i, cell in enumerate(head)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def plain(lines: list[list[str]]) -> str:
    """The same as aligned text for the terminal."""
    head, *body = _pad([[" ".join(cell.split()) for cell in line] for line in lines])
    rule = ["-" * len(cell) for cell in head]
    return "\n".join("  ".join(line).rstrip() for line in (head, rule, *body))


def bullets(items: Any) -> str:
    """A Markdown list of the items."""
    return "\n".join(f"- {item}" for item in items)


def picture(workdir: Path, path: str | Path, caption: str) -> str:
    """A picture by its path relative to `workdir`, and its caption."""
    relative = os.path.relpath(path, workdir)
    return f"![{caption}]({urllib.parse.quote(Path(relative).as_posix())})\n\n{caption}"


def _times(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row["seconds"])
    lines = [["method", "seeds", "mean time", "total time"]]
    return lines + [[m, str(len(s)), duration(sum(s) / len(s)), duration(sum(s))] for m, s in groups.items()]
