"""`prepare` by the names of public sources."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from experiments.prepare import prepare
from experiments.runner.workspace import Workspace
from pref_jax.data.sources import tldr
from pref_jax.errors import UserError


def run_of(tmp_path, **source: Any) -> Workspace:
    # A backbone that is a folder is left alone.
    config: Any = ConfigDict({"source": source, "backbone": {"name": str(tmp_path)}})
    return Workspace(config, 3, tmp_path / "run")


def test_a_public_source_by_name_from_a_folder(tmp_path):
    for part in ("train", "validation"):
        rows = [
            {
                "info": {"post": f"{part} post {i % 8}", "article": None},
                "summaries": [{"text": f"{i}", "policy": "sup2"}, {"text": "longer", "policy": "sup2"}],
                "choice": i % 2,
                "worker": f"w{i % 5}",
            }
            for i in range(40)
        ]
        (tmp_path / "comparisons" / part).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "comparisons" / part / "0000.parquet")
    run = run_of(tmp_path, name="tldr", path=str(tmp_path), rule="lore")
    prepare(run)
    data = run.data
    assert data.meta["seed"] == 3
    assert (data.num_users, data.comparisons.num_rows) == (5, 80)


@pytest.mark.parametrize("name", ["ultrafeedback", "tldr", "personalllm"])
def test_public_sources_need_no_option(name, tmp_path):
    with pytest.raises(UserError, match=r"--config.source.path=FOLDER"):
        prepare(run_of(tmp_path, name=name))
    with pytest.raises(UserError, match=rf"config.source does not fit {name}: .*colour"):
        prepare(run_of(tmp_path, name=name, colour="red"))


def test_a_missing_path_is_told(tmp_path):
    with pytest.raises(UserError, match=r"config.source does not fit crowdrag: missing .*'path'"):
        prepare(run_of(tmp_path, name="crowdrag"))
    with pytest.raises(UserError, match=r"config.source.path is empty"):
        prepare(run_of(tmp_path, name="jsonl", path=""))


def test_a_mistake_inside_a_reader_is_not_blamed_on_the_config(tmp_path, monkeypatch):
    def broken(path: str = "", *, seed: int) -> None:
        raise TypeError("inside")

    monkeypatch.setattr(tldr, "read", broken)
    with pytest.raises(TypeError, match="inside"):
        prepare(run_of(tmp_path, name="tldr"))


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"'tldr2'; give one of .*ultrafeedback, tldr, personalllm"):
        prepare(run_of(tmp_path, name="tldr2"))
