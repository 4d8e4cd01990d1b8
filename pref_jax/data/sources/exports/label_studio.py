"""Votes of Label Studio: the pairwise template, choices between two texts, and ratings, as JSON or JSON-MIN.

    {"data": {"prompt": ..., "answer1": ..., "answer2": ...}, "annotations": [{"completed_by": 7, "result":
     [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}], "updated_at": ...}]}
    {"prompt": ..., "answer1": ..., "answer2": ..., "annotator": 7, "annotation_id": 1, "pw": {"selected": "left"}}

Schema: labelstud.io/guide/task_format and /tags/pairwise. The tag's `toName` tells the two texts where the data has
these names; otherwise they are looked for by name (text1 and text2, answer_a and answer_b, ...) or told by columns. A
cancelled annotation is a pair that was skipped.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pref_jax.data.sources.exports import fields


def is_record(value: dict[str, Any]) -> bool:
    """Whether a row is a task of Label Studio."""
    full = isinstance(value.get("data"), dict) and isinstance(value.get("annotations"), list)
    return full or {"annotator", "annotation_id"} <= value.keys()


def votes(value: dict[str, Any], columns: Mapping[str, str], note: Any, left_out: Counter[str]) -> list[dict[str, Any]]:
    """The votes of a task, one for each annotation."""
    if not isinstance(value.get("annotations"), list):
        return _short(value, columns, note, left_out)
    data = value["data"] if isinstance(value.get("data"), dict) else {}
    rows = []
    for annotation in value["annotations"]:
        if not isinstance(annotation, dict):
            note("annotations", "holds something that is no annotation", "export the project again")
            continue
        by = annotation.get("completed_by")
        user = next((by[key] for key in ("email", "id") if by.get(key)), None) if isinstance(by, dict) else by
        time = annotation.get("updated_at") or annotation.get("created_at")
        results = annotation.get("result")
        results = [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []
        if annotation.get("was_cancelled"):
            row = {"outcome": "skipped"} if _sides(data, results, columns) else None
            what = "cancelled annotations"
        else:
            row, what = _verdict(data, results, columns), "annotations without a vote"
        if not row:
            left_out[what] += 1
            continue
        side = {} if "response" in row else {"responses": _sides(data, results, columns)}
        named = {} if user is None else {"user": str(user)}
        rows.append({**named, "prompt": fields.prompt(data, columns), **side, **dict(row), "time": time})
    return rows


def _verdict(data: Mapping[str, Any], results: list[Any], columns: Mapping[str, str]) -> dict[str, Any] | None:
    """Which of two texts was selected, or how a single one was rated."""
    values = {one.get("type"): one["value"] for one in reversed(results) if isinstance(one.get("value"), dict)}
    if "pairwise" in values:
        return {"winner": values["pairwise"].get("selected")}
    if "choices" in values and _sides(data, results, columns):
        chosen = values["choices"].get("choices")
        return {"winner": chosen[0] if isinstance(chosen, list) and chosen else chosen}
    response = fields.response(data, columns)
    if "rating" in values and response is not None:
        return {"response": response, "rating": values["rating"].get("rating")}
    return None


def _sides(data: Mapping[str, Any], results: list[Any], columns: Mapping[str, str]) -> list[Any] | None:
    """The two texts, left and right."""
    for one in results:
        names = one.get("to_name")
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        two = one.get("type") == "pairwise" and isinstance(names, list) and len(names) == 2
        if two and all(isinstance(name, str) and name in data for name in names):
            return [data[name] for name in names]
    return fields.sides(data, columns)


def _short(
    value: dict[str, Any], columns: Mapping[str, str], note: Any, left_out: Counter[str]
) -> list[dict[str, Any]]:
    """A row of JSON-MIN."""
    selected = [one for one in map(_selected, value.values()) if one]
    sides = fields.sides(value, columns)
    if len(selected) != 1 or not sides:
        note("annotation_id", f"{len(selected)} selections between two texts", "export the project as JSON instead")
        return []
    time = value.get("updated_at") or value.get("created_at")
    row = {"prompt": fields.prompt(value, columns), "responses": sides, "winner": selected[0], "time": time}
    return [row if value.get("annotator") is None else {"user": str(value["annotator"]), **row}]


def _selected(value: Any) -> Any:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    value = value.get("selected") if isinstance(value, dict) else value
    return value if value in ("left", "right") else None
