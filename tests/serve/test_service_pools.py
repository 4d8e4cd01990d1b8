"""What a service keeps of a pool, beside the store asked anew."""

import pytest

from pref_jax.serve.pools import Pools
from pref_jax.serve.store.records import Pair
from pref_jax.serve.store.store import Store
from pref_jax.serve.texts import texts_of


def _pairs(names, said="why"):
    return [Pair(id=name, prompt=f"{said} {name}?", first=f"{name} yes", second=f"{name} no") for name in names]


def _reads(store, monkeypatch):
    """Grows by a name whenever a pool's pairs are read."""
    reads, read = [], store.pairs
    monkeypatch.setattr(store, "pairs", lambda pool: reads.append(pool) or read(pool))
    return reads


def test_a_pool_is_read_once_until_anybody_changes_it(store, url, monkeypatch):
    pools, reads = Pools(store), _reads(store, monkeypatch)
    assert pools.get("pool") == []
    store.add_pairs("pool", _pairs("ba"))
    first = pools.get("pool")
    assert [one.pair for one in first] == _pairs("ba")
    want = texts_of(["why b?", "why a?"], ["b yes", "a yes"]) + texts_of(["why b?", "why a?"], ["b no", "a no"])
    assert [one.first for one in first] + [one.second for one in first] == want
    assert pools.get("pool") is first
    assert reads == ["pool", "pool"]
    with Store.open(url) as other:
        other.add_pairs("pool", _pairs("c"))
        other.add_pairs("more", _pairs("xyz"))
        assert [one.pair for one in pools.get("pool")] == _pairs("bac")
        # As many as before, under the same names, with other texts.
        other.remove_pool("pool")
        other.add_pairs("pool", _pairs("bac", "how"))
        assert [one.pair for one in pools.get("pool")] == _pairs("bac", "how")
        other.remove_pool("pool")
    assert pools.get("pool") == []
    assert [one.pair for one in pools.get("more")] == _pairs("xyz")


@pytest.mark.parametrize(("most", "kept"), [(0, ""), (17, "b"), (18, "c"), (27, "bc"), (36, "abc")])
def test_the_pools_asked_for_last_are_kept_within_bounds(store, monkeypatch, most, kept):
    for name in "abc":
        store.add_pairs(name, _pairs({"a": "x", "b": "x", "c": "xy"}[name]))
    sizes = {name: sum(len(one.first) + len(one.second) for one in store.pairs(name)) for name in "abc"}
    assert sizes == {"a": 9, "b": 9, "c": 18}
    pools = Pools(store, most)
    for name in "abc":
        pools.get(name)
    reads = _reads(store, monkeypatch)
    for name in kept:
        pools.get(name)
    assert reads == []
    for name in sorted(set("abc") - set(kept)):
        pools.get(name)
    assert reads == sorted(set("abc") - set(kept))


def test_a_dropped_pool_is_read_again(store, monkeypatch):
    store.add_pairs("pool", _pairs("a"))
    pools, reads = Pools(store), _reads(store, monkeypatch)
    pools.get("pool")
    pools.drop("pool")
    pools.drop("none")
    pools.get("pool")
    assert reads == ["pool", "pool"]
