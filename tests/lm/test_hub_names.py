"""The name of a base in what others read."""

import pytest

from pref_jax.lm import hub


def test_names_that_others_can_open_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    for name in ("acme/tiny-rm", "package:some_weights/model", "runs/base", str(tmp_path / "runs" / "base"), "nowhere"):
        assert hub.public_name(name) == name


@pytest.mark.parametrize(
    ("inside", "want"),
    [
        ("hub/models--acme--tiny-rm/snapshots/0123456789abcdef", "acme/tiny-rm"),
        ("hub/models--acme--tiny--rm/snapshots/0123", "acme/tiny--rm"),
        ("lib/python3.11/site-packages/some_weights/model", "package:some_weights/model"),
        ("lib/python3/dist-packages/some_weights/model", "package:some_weights/model"),
        ("models/base", "base"),
    ],
)
def test_paths_into_caches_packages_and_homes_are_not_told(tmp_path, monkeypatch, inside, want):
    home = tmp_path / "somebody"
    (home / inside).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert hub.public_name(home / inside) == want
    (home / "work").mkdir()
    monkeypatch.chdir(home / "work")
    assert "somebody" not in hub.public_name(f"../../somebody/{inside}")
