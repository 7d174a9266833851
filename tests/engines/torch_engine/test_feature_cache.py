"""The feature cache is bounded in bytes, forgets the least recently used, and owns what it keeps."""

from __future__ import annotations

import torch

from onsight.engines.torch_engine.feature_cache import FeatureCache


def test_it_forgets_the_least_recently_used() -> None:
    cache = FeatureCache(max_bytes=2 * 16)
    for key in ("a", "b"):
        cache.store(key, torch.ones(4))
    assert cache.find("a") is not None
    cache.store("c", torch.ones(4))
    assert cache.find("b") is None
    assert cache.find("a") is not None
    assert (cache.bytes, cache.hits, cache.misses) == (32, 2, 3)


def test_it_keeps_a_copy_and_not_the_batch() -> None:
    cache = FeatureCache(max_bytes=1000)
    batch = torch.ones(100, 4)
    cache.store("a", batch[3:4])
    batch.zero_()
    found = cache.find("a")
    assert found is not None
    assert found.untyped_storage().nbytes() == 16
    assert bool((found == 1).all())


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    cache = FeatureCache(max_bytes=8)
    assert cache.store("a", torch.ones(4)).shape == (4,)
    assert cache.bytes == 0
