"""Making of data sets."""

import time

from experiments.benchmarks.measure import Result, result
from pref_jax.data.sources import world
from pref_jax.data.sources.world import WorldConfig


def prepare(small: int = 100_000, times: int = 10) -> list[Result]:
    """The embedded world at two sizes: the baseline is the small one's time, scaled; ratio 1 is linear cost."""

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
    return [
        result("prepare", f"{rows} comparisons, against {small}", short * times, long, comparisons_a_second=rows / long)
    ]
