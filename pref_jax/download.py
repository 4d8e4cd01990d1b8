"""Files of the Hugging Face hub, in the cache that its client keeps."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pref_jax.errors import UserError

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def fetch(
    name: str,
    patterns: Sequence[str],
    *,
    repo_type: str | None = None,
    revision: str | None = None,
    check: str,
    give: str,
) -> Path:
    """The cache's folder with a repository's files; needs no network if they are there.

    Args:
      name: hub id such as `org/name`.
      patterns: globs of the files.
      repo_type: "dataset", or None for a model.
      revision: branch, tag or commit; the main branch if None.
      check: what the name came from, for messages.
      give: what can be given instead, for messages.

    Raises:
      UserError: if the name is no hub id, or the files cannot be fetched.
    """
    if _ID.fullmatch(name) is None:
        raise UserError(f"{name or 'the empty path'}: no such folder, and no hub id (org/name) either; check {check}")
    import huggingface_hub.utils

    try:
        with quiet(huggingface_hub.utils):
            folder = huggingface_hub.snapshot_download(
                name, repo_type=repo_type, revision=revision, allow_patterns=list(patterns)
            )
    except Exception as error:  # the hub client raises errors of many libraries: all mean "not fetched" to the user
        raise UserError(
            f"{name}: no such folder here, and the hub did not give it ({type(error).__name__}: {error!s:.300}); {give}"
        ) from error
    return Path(folder)


@contextlib.contextmanager
def quiet(bars: Any) -> Iterator[None]:
    """No progress bars of `datasets` or `huggingface_hub.utils` where nobody looks at a terminal."""
    shown = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    if shown:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()
