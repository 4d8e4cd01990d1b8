"""Errors for people: what was wrong, where, and how to fix it."""


class UserError(Exception):
    """A mistake the user can fix. Commands print its text without a traceback and exit with code 2."""


class Faults:
    """Collects all faults of one input, so that they are reported together rather than one at a time.

    At most `show` faults are spelled out; the number of the rest is told.
    """

    def __init__(self, *, show: int = 20):
        self._lines: list[str] = []
        self._count = 0
        self._show = show

    def __len__(self) -> int:
        return self._count

    def add(self, where: str, what: str, fix: str) -> None:
        """Notes one fault: `where` it is, `what` is wrong, and the `fix`."""
        self._count += 1
        if len(self._lines) < self._show:
            self._lines.append(f"  {where}: {what}; {fix}")

    def raise_if_any(self, title: str) -> None:
        """Raises one `UserError` with everything noted so far; does nothing if there is nothing.

        Raises:
          UserError: if at least one fault was added.
        """
        if not self._count:
            return
        lines = [f"{title} ({self._count} fault{'s' if self._count > 1 else ''}):", *self._lines]
        if self._count > len(self._lines):
            lines.append(f"  ... and {self._count - len(self._lines)} more")
        raise UserError("\n".join(lines))
