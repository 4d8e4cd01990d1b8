"""What a training ends with: what was read, and how the reward did on the votes that were held out from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pref_jax.data.preferences import Preferences
from pref_jax.data.schema import OUTCOMES, pc
from pref_jax.eval.held_out import MEANINGS, NOBODY, HeldOut
from pref_jax.eval.metrics import Interval
from pref_jax.eval.reporting.report import Section, bullets, table, write_report
from pref_jax.eval.reporting.results import write_results


def write_training_report(
    folder: str | Path,
    held: HeldOut,
    votes: Preferences,
    *,
    name: str,
    model: str,
    method: str,
    choice: Sequence[str] = (),
) -> str:
    """Writes report.md and results.json into `folder`.

    Args:
      folder: of the saved model.
      held: scores on the test votes.
      votes: all tables.
      name: of the votes.
      model: what the fitted model says of itself.
      method: its name in the rows.
      choice: how the method was chosen, if it was.

    Returns:
      The same in short for the terminal.
    """
    results = write_results(Path(folder) / "results.json", dataset=name, rows=held.rows)
    read, found = what_was_read(votes), findings(held, method)
    write_report(
        folder,
        results,
        title=f"{method} on {name}",
        meanings={method: model, **MEANINGS},
        findings=found,
        sections=[Section("Votes", bullets(read)), *([Section("Choice", bullets(choice))] if choice else [])],
    )
    scores = [table(held.rows, style="plain").strip()] if held.rows else []
    return "\n".join([*read, *choice, *scores, *found])


def what_was_read(votes: Preferences) -> list[str]:
    """Users and votes, ties among them, the split, and what was left out, as sentences."""
    counts, meta = votes.meta["counts"], votes.meta
    outcomes = {word: int(pc.sum(pc.equal(votes.comparisons["outcome"], word)).as_py() or 0) for word in OUTCOMES}
    told = [
        f"{counts['users']} users ({counts['seen_users']} seen, {counts['unseen_users']} unseen), "
        f"{counts['comparisons']} comparisons of {counts['responses']} responses: "
        f"{counts['train'] + counts['validation']} to learn and choose by, {counts['test']} to test on"
        + (f"; {counts['ratings']} ratings" if counts["ratings"] else "")
    ]
    total = max(sum(outcomes.values()), 1)
    others = [
        f"{count} {word} ({count / total:.1%})" for word, count in outcomes.items() if count and word != OUTCOMES[0]
    ]
    told.append(f"of these {', '.join(others)}" if others else "no ties among them")
    assigned: dict[str, Any] = meta.get("assigned", {})
    if "split_by" in assigned:
        given = f" (asked for by {assigned['split_asked']})" if assigned["split_asked"] != assigned["split_by"] else ""
        told.append(f"split by {assigned['split_by']}{given}")
    left_out = [f"{name.replace('_', ' ')} {count}" for name, count in meta.get("filtered", {}).items() if count]
    told.append(f"left out: {', '.join(left_out)}" if left_out else "nothing was left out")
    return told


def findings(held: HeldOut, method: str) -> list[str]:
    """Gains over the shared reward, and how many test pairs were scored."""
    if not held.pairs:
        return ["no vote was held out for a test, so nothing is told of how well the reward predicts"]
    told = [
        f"{side} users: accuracy of {method} less that of the {NOBODY}: {_points(gain)} points (mean of {gain.n} users)"
        for side, gain in held.gains.items()
    ]
    if held.scored < held.pairs:
        told.append(f"scored on {held.scored} of the {held.pairs} test pairs, drawn at random")
    return told


def _points(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
