"""Rows that cannot be read: all of them are an error, or each is dropped, counted and listed."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pref_jax.errors import Faults, UserError
from pref_jax.files import write_text
from pref_jax.progress import log

ERROR, DROP = "error", "drop"
_PLACE = re.compile(r"(?P<file>.*?)(?::(?P<line>\d+)|, row (?P<row>\d+))(?:, field '(?P<field>[^']*)')?", re.DOTALL)


class RowFaults(Faults):
    """Faults of rows, of which each says its file, its line or row, and perhaps its field.

    Args:
      on_bad_row: "error", or "drop".

    Raises:
      UserError: for another word.
    """

    def __init__(self, on_bad_row: str = ERROR):
        super().__init__()
        if on_bad_row not in (ERROR, DROP):
            raise UserError(f"on_bad_row: is {on_bad_row!r}; use {ERROR} or {DROP}")
        self._drop = on_bad_row == DROP
        self._rows: dict[tuple[str, str, int], list[dict[str, str]]] = {}

    def add(self, where: str, what: str, fix: str) -> None:
        """As `Faults.add`; `where` is "FILE:LINE" or "FILE, row NUMBER", perhaps with ", field 'NAME'"."""
        super().add(where, what, fix)
        if self._drop and (place := _PLACE.fullmatch(where)):
            unit = "line" if place["line"] else "row"
            # What is quoted may be somebody's text.
            fault = re.sub(r"(['\"]).*\1", "...", what, flags=re.DOTALL)
            field = {"field": place["field"]} if place["field"] else {}
            row = place["file"], unit, int(place["line"] or place["row"])
            self._rows.setdefault(row, []).append({**field, "fault": fault})

    def settle(self, title: str, rows: int, listed: Path | None) -> dict[str, Any]:
        """Ends the reading: an error, or a word on the terminal and a file with every dropped row, none of its texts.

        Args:
          title: names the votes.
          rows: that were read well.
          listed: a `.jsonl` file of {"file", "line" or "row", "faults"}; None: no file. Without bad rows there is none.

        Returns:
          `dropped_rows` and `dropped` {reason: rows} for meta.

        Raises:
          UserError: with all faults, unless bad rows are dropped and others are left.
        """
        if listed is not None:
            listed.unlink(missing_ok=True)
        if not self._drop or (self._rows and not rows):
            self.raise_if_any(f"{title}: bad rows")
        reasons: Counter[str] = Counter()
        for faults in self._rows.values():
            reasons.update({re.sub(r"\d+", "N", " ".join([*one.values()])) for one in faults})
        if self._rows:
            some = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
            log(f"{title}: dropped {len(self._rows)} of {len(self._rows) + rows} rows: {some}")
            if listed is not None:
                # Lines that hold no row are noted as a file is opened, before the others.
                files = list(dict.fromkeys(file for file, _, _ in self._rows))
                found = sorted(self._rows.items(), key=lambda item: (files.index(item[0][0]), item[0][2]))
                lines = [{"file": file, unit: number, "faults": faults} for (file, unit, number), faults in found]
                write_text(listed, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                log(f"{title}: they are listed in {listed}")
        return {"dropped_rows": len(self._rows), "dropped": dict(reasons.most_common())}
