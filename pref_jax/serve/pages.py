"""The pages for people: files of the folder `page`, under addresses that change with every change of any of them."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pref_jax.serve.faults import RefusedError
from pref_jax.serve.http import Call, Reply, Route

FOLDER = Path(__file__).parent / "page"
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts and styles are files of this service alone, and no script can make HTML of a text.
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# A page is asked for again each time; what it names has the version in its address.
FRESH, KEPT = {"cache-control": "no-cache"}, {"cache-control": "public, max-age=31536000, immutable"}
_VERSION = b"{version}"


class Files(NamedTuple):
    """What is served: a version, which is a digest of all files, and their bytes by name."""

    version: str
    files: Mapping[str, bytes]


@functools.lru_cache(None)
def files() -> Files:
    """All files of the folder; pages name the version wherever they say {version}."""
    found = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA}
    said = b"".join(name.encode() + b"\0" + hashlib.sha256(data).digest() for name, data in found.items())
    version = hashlib.sha256(said).hexdigest()[:16]
    ready = {
        name: data.replace(_VERSION, version.encode()) if name.endswith(".html") else data
        for name, data in found.items()
    }
    return Files(version, ready)


def _page(name: str) -> Reply:
    return Reply(files().files[name], headers=SAFE | FRESH, media=MEDIA[".html"])


async def votes_page(call: Call) -> Reply:
    """Where people vote."""
    del call
    return _page("index.html")


async def study_page(call: Call) -> Reply:
    """For whoever runs a study."""
    del call
    return _page("study.html")


async def asset(call: Call) -> Reply:
    """A script, a style or a picture of the pages."""
    found, name = files(), call.params["name"]
    if call.params["version"] != found.version or name not in found.files or name.endswith(".html"):
        raise RefusedError(404, "there is nothing at this path; load the page again")
    return Reply(found.files[name], headers=SAFE | KEPT, media=MEDIA[Path(name).suffix])


# Not in the OpenAPI document: what a page is made of is nobody's interface.
ROUTES = (
    Route("GET", "/", votes_page, "Where people vote", right=None),
    Route("GET", "/study", study_page, "For whoever runs a study", right=None),
    Route("GET", "/page/{version}/{name}", asset, "A part of the pages", right=None),
)
