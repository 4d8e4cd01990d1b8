"""One table of methods on several data sets: its rows, and how they stand in Markdown and in LaTeX.

A `Block` is a data set, a `Row` a method on it; accuracies are means over seeds with intervals over users (`paired`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pref_jax.eval import bootstrap
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting import report
from pref_jax.eval.reporting.report import MISSING, duration

SIDES = ("seen", "unseen")
LEVEL = 0.05
HEAD = (
    "method",
    "against",
    "seen",
    "difference",
    "unseen",
    "difference",
    "time",
    "parameters per user",
    "context pairs",
)
NOTE = (
    "Accuracies in percent, means over users and then over seeds; in brackets the 95 % interval of a paired bootstrap "
    "over users, the same resamples for all methods and seeds: of people, not of worlds or trainings; none is given of "
    f"fewer than {bootstrap.FEWEST} users. A difference is "
    "that to the method named under “against”, in points; * marks p < 0.05, two-sided by the same bootstrap, after "
    "Holm's correction over the methods of the data set, seen and unseen users apart. Time is that of one seed: "
    "training, choosing and scoring. Parameters per user are those that a method keeps for each user, context pairs "
    "those of an unseen user that it reads, on average."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference to another method.

    Attributes:
      value: in fractions, with its interval.
      p: two-sided, of this difference alone.
      corrected: p after Holm's correction.
    """

    value: Interval
    p: float
    corrected: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 5 %; never without an interval."""
        return self.value.low is not None and self.corrected < LEVEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a data set.

    Attributes:
      method: its name.
      against: the method that its differences are to; "" for none.
      accuracy: side -> fraction right, of `SIDES`; a side without users is absent.
      gap: side -> difference to `against`.
      seconds: of one seed, mean over seeds.
      parameters: that the method keeps for each user; None: not told.
      context: pairs of an unseen user that it reads, on average; None: not told.
    """

    method: str
    against: str
    accuracy: Mapping[str, Interval]
    gap: Mapping[str, Gap]
    seconds: float
    parameters: float | int | str | None
    context: float | int | str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A data set: its title, its seeds, a row for each method, and sentences to stand below."""

    title: str
    seeds: Sequence[int]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def compared(
    accuracies: Mapping[str, Sequence[np.ndarray]],
    users: Sequence[np.ndarray],
    against: Mapping[str, str],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[str, Gap]]:
    """Means, and differences with corrected p, of methods on the same users.

    Args:
      accuracies: method -> for each seed float [U], of the same users in the same order for all methods.
      users: for each seed names or numbers [U] of these users; who stands in several seeds is drawn for all at once.
      against: method -> the one that it is compared with; methods that are not in it, or whose partner is not among
        the accuracies, get no difference.
      resamples: of the bootstrap.
      seed: of its draws.
    """
    names = list(accuracies)
    count = len(accuracies[names[0]])
    seeds = [np.stack([np.asarray(accuracies[name][s], np.float64) for name in names]) for s in range(count)]
    people = len(np.unique(np.concatenate(users)))
    mean, draws = bootstrap.means(seeds), bootstrap.resampled_means(seeds, users, resamples=resamples, seed=seed)
    place = {name: number for number, name in enumerate(names)}
    values = {name: bootstrap.interval(mean[i], draws[:, i], users=people) for name, i in place.items()}
    pairs = {name: place[other] for name, other in against.items() if name in place and other in place}
    gaps = {name: draws[:, place[name]] - draws[:, other] for name, other in pairs.items()}
    # Of few people all may agree by chance: no p is below that of the sign test.
    p = {name: max(bootstrap.two_sided(gap), 2.0 ** (1 - people)) for name, gap in gaps.items()}
    corrected = bootstrap.holm(p)
    found = {
        name: Gap(
            value=bootstrap.interval(mean[place[name]] - mean[pairs[name]], gap, users=people),
            p=p[name],
            corrected=corrected[name],
        )
        for name, gap in gaps.items()
    }
    return values, found


def as_json(block: Block) -> dict[str, Any]:
    """A block as JSON values; each gap with `significant`."""
    found = dataclasses.asdict(block)
    for row, own in zip(found["rows"], block.rows, strict=True):
        for side, gap in own.gap.items():
            row["gap"][side]["significant"] = gap.significant
    return found


def markdown(blocks: Sequence[Block]) -> str:
    """A heading and a table for each data set, and the note once."""
    parts = []
    for block in blocks:
        lines = [list(HEAD), *(_cells(row) for row in block.rows)]
        parts += [f"### {report.escape(block.title)}", _seeds(block), report.grid(lines)]
        parts += [report.bullets(report.escape(note) for note in block.notes)] if block.notes else []
    return "\n\n".join([*parts, NOTE]) + "\n"


def latex(blocks: Sequence[Block], *, label: str = "tab:compare") -> str:
    r"""The same as LaTeX tables, one `table*` a data set, to be read in by \input; asks for booktabs alone."""
    lines = [r"% Needs \usepackage{booktabs} and UTF-8 input. Read in by \input{table}; made by experiments.compare."]
    for number, block in enumerate(blocks):
        rows = [r"    " + " & ".join(_latex_cells(row)) + r" \\" for row in block.rows]
        caption = f"{tex(block.title)}. {tex(_seeds(block))}" + (f" {tex(NOTE)}" if not number else "")
        notes = " ".join(tex(f"{note[:1].upper()}{note[1:]}.") for note in block.notes)
        lines += [
            r"\begin{table*}[t]",
            r"  \centering",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{caption}{' ' + notes if notes else ''}}}",
            rf"  \label{{{label}:{number + 1}}}",
            rf"  \begin{{tabular}}{{ll{'r' * (len(HEAD) - 2)}}}",
            r"    \toprule",
            r"    " + " & ".join(tex(cell) for cell in HEAD) + r" \\",
            r"    \midrule",
            *rows,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table*}",
        ]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    MISSING: "--",
    "−": "$-$",
    "±": r"$\pm$",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "\n": " ",
}


def tex(text: str) -> str:
    """Text as LaTeX prints it letter by letter, on one line; a bracket never opens an optional argument."""
    return "".join(_TEX.get(c, c) for c in text)


def _latex_cells(row: Row) -> list[str]:
    # A cell that opens with [ would be read as an argument of the \\ before it.
    return ["{}" + tex(cell) if cell.startswith("[") else tex(cell) for cell in _cells(row)]


def _cells(row: Row) -> list[str]:
    cells = [row.method, row.against or MISSING]
    for side in SIDES:
        accuracy, gap = row.accuracy.get(side), row.gap.get(side)
        cells += [MISSING if accuracy is None else _percent(accuracy, "")]
        cells += [MISSING if gap is None else _percent(gap.value, "+") + ("*" if gap.significant else "")]
    return [*cells, duration(row.seconds), _number(row.parameters), _number(row.context)]


def _percent(value: Interval, sign: str) -> str:
    def points(number: float) -> str:
        return f"{100 * number:{sign}z.1f}".replace("-", "−")

    text = points(value.mean)
    return text if value.low is None or value.high is None else f"{text} [{points(value.low)}, {points(value.high)}]"


def _number(value: float | int | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or MISSING
    return f"{value:.1f}".removesuffix(".0")


def _seeds(block: Block) -> str:
    return f"{'Seeds' if len(block.seeds) > 1 else 'Seed'} {', '.join(map(str, block.seeds))}."
