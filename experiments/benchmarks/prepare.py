"""Making of data sets."""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.benchmarks.measure import Result, forget_peak, in_new_process, result
from pref_jax.data import preferences
from pref_jax.data.sources import tldr
from pref_jax.data.sources.jsonl import reader
from pref_jax.data.sources.synthetic import world
from pref_jax.data.sources.synthetic.world import WorldConfig

# Sizes of the real comparisons of TL;DR, roughly: characters of a post and of a summary, votes a post, workers.
_POST, _SUMMARY, _VOTES_A_POST, _WORKERS = 1200, 150, 8, 80


def prepare(small: int = 100_000, times: int = 10) -> list[Result]:
    """The synthetic world, votes in TL;DR's schema, and votes of every form, at two sizes.

    The baseline is the small one's time, scaled; ratio 1 is linear cost.
    """

    def seconds(comparisons: int) -> tuple[float, int]:
        users = comparisons // 20
        config = WorldConfig(
            seen_users=users, unseen_users=0, pairs_per_user=10, test_pairs_per_user=10, train_prompts=users // 4
        )
        start = time.perf_counter()
        data = world.generate(config)
        return time.perf_counter() - start, data.comparisons.num_rows

    seconds(1000)
    (short, _), (long, rows) = seconds(small), seconds(small * times)
    facts = {"comparisons_a_second": rows / long}
    made = [result("prepare", f"{rows} comparisons, against {small}", short * times, long, **facts)]
    little, much = (in_new_process(__name__, "votes", size) for size in (small, small * times))
    size = f"{small * times} votes in TL;DR's schema, parquet to saved tables, against {small}"
    extra = {name: much[name] for name in ("cpu_seconds", "comparisons", "source_bytes")} | {"peak_bytes": much["peak"]}
    made.append(result("prepare", size, little["seconds"] * times, much["seconds"], **extra))
    little, much = (in_new_process(__name__, "mixed_votes", size) for size in (small, small * times))
    size = f"{small * times} mixed votes, JSON lines to saved tables, against {small}"
    extra = {name: much[name] for name in ("cpu_seconds", "comparisons", "source_bytes")} | {"peak_bytes": much["peak"]}
    return [*made, result("prepare", size, little["seconds"] * times, much["seconds"], **extra)]


def votes(count: int) -> dict[str, float]:
    """Reads `count` votes of a folder like the hub's, by the rule of LoRe without its limits, and saves the tables."""
    from datasets import config as hub_settings

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        hub_settings.HF_DATASETS_CACHE = root / "arrow"
        # A tenth tests. Different seeds, so that the posts of one part are not those of the other.
        for seed, (part, share) in enumerate({"train": count - count // 10, "validation": count // 10}.items()):
            file = root / "comparisons" / part / "0000.parquet"
            file.parent.mkdir(parents=True)
            _write_votes(file, share, seed)
        forget_peak()
        start, worked = time.perf_counter(), time.process_time()
        data = tldr.read(root, rule="lore", train_pairs=count, context_pairs=count)
        preferences.save(data, root / "tables")
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        size = sum(one.stat().st_size for one in (root / "arrow").rglob("*.arrow"))
    counts = {"comparisons": data.comparisons.num_rows, "source_bytes": size}
    return {"seconds": seconds, "cpu_seconds": worked, **counts}


def mixed_votes(count: int) -> dict[str, float]:
    """Reads `count` votes of every form from JSON lines, with 20 % ties, and saves the tables."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "votes.jsonl"
        _write_mixed(file, count)
        forget_peak()
        start, worked = time.perf_counter(), time.process_time()
        data = reader.read(file)
        preferences.save(data, Path(folder) / "tables")
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        size = file.stat().st_size
    counts = {"comparisons": data.comparisons.num_rows, "source_bytes": size}
    return {"seconds": seconds, "cpu_seconds": worked, **counts}


def _write_mixed(file: Path, count: int) -> None:
    """Votes of `count` / 20 people on four answers to each of `count` / 100 prompts."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            prompt, form = rng.randrange(max(count // 100, 1)), rng.random()
            texts = [f"Answer {place} to {prompt}: {'so it is said, ' * 8}" for place in rng.sample(range(4), 4)]
            row: dict[str, Any] = {
                "user": f"u{rng.randrange(max(count // 20, 1))}",
                "time": 1.7e9 + rng.randrange(10**7),
            }
            row["prompt"] = f"Question {prompt}? {'It is asked, ' * 20}"
            if form < 0.4:
                row |= {"chosen": texts[0], "rejected": texts[1], "strength": rng.randrange(1, 4)}
            elif form < 0.6:
                row |= {"responses": texts[:2], "outcome": "tie"}
            elif form < 0.7:
                row |= {"responses": texts[:2], "preference": rng.randrange(-3, 4)}
            elif form < 0.8:
                row |= {"ranking": texts}
            else:
                row |= {"response": texts[0], "rating": rng.randrange(1, 6)}
            out.write(json.dumps(row) + "\n")


def _write_votes(file: Path, count: int, seed: int, chunk: int = 100_000) -> None:
    """Votes of workers on two of a post's four summaries, in TL;DR's schema."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)

    def texts(rows: int, length: int) -> pa.Array:
        data = pa.py_buffer(letters[rng.integers(len(letters), size=rows * length, dtype=np.uint8)])
        offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * length)
        return pa.StringArray.from_buffers(rows, offsets, data)

    posts = max(count // _VOTES_A_POST, 1)
    post, summary = texts(posts, _POST), texts(4 * posts, _SUMMARY)
    writer = None
    for start in range(0, count, chunk):
        rows = min(chunk, count - start)
        which = rng.integers(posts, size=rows)
        first = rng.integers(4, size=rows)
        ends = np.stack([first, (first + rng.integers(1, 4, size=rows)) % 4], axis=1) + 4 * which[:, None]
        policy = pa.repeat("sup2", 2 * rows)
        text = pa.StructArray.from_arrays([summary.take(pa.array(ends.ravel())), policy], names=["text", "policy"])
        columns = [post.take(pa.array(which)), pa.nulls(rows, pa.string())]
        info = pa.StructArray.from_arrays(columns, names=["post", "article"])
        worker = pa.array([f"worker-{name}" for name in range(_WORKERS)])
        table = pa.table(
            {
                "info": info,
                "summaries": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * 2, text),
                "choice": rng.integers(2, size=rows).astype(np.int32),
                "worker": worker.take(pa.array(rng.integers(_WORKERS, size=rows))),
            }
        )
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
