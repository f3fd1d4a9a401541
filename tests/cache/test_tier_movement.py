"""Between RAM and SSD: where new bytes go, what is promoted and demoted, and what a failing tier costs."""

import asyncio
from pathlib import Path

import pytest

from forebay.cache.options import CacheOptions
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tiers.version import ObjectVersion

RAM = 32 * MIB
SMALL = 400_000


def objects(store: FakeStore, count: int, size: int = SMALL, stem: str = "k") -> list[ObjectVersion]:
    return [store.add(f"{stem}{n}", content_of(n, size)) for n in range(count)]


async def test_ram_is_filled_first_and_then_left_alone(tmp_path: Path) -> None:
    store = FakeStore()
    versions = objects(store, 200)
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        for version in versions:
            await cache.read(version, 0, SMALL)
            await settled(cache)
        ram, ssd = cache.stats().tiers
        assert 0.85 * RAM < ram.used_bytes < 0.95 * RAM
        assert ram.evicted == 0
        assert ssd.entries + ram.entries == 200
        assert all(cache.read_cached(version, 0, SMALL) == store.objects[version.key] for version in versions)
        assert len(store.requests) == 200


async def test_what_ram_evicts_is_demoted_not_lost(tmp_path: Path) -> None:
    store = FakeStore()
    versions = objects(store, 200)
    large = store.add("large", content_of(9, 20 * MIB))
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        for version in [*versions, large]:
            for offset in range(0, version.size, MIB):
                data = store.objects[version.key][offset : offset + MIB]
                assert await asyncio.to_thread(cache.tiers.write, version, offset, data, "ram") is None
        stats = cache.stats()
        assert stats.tiers[0].evicted > 0
        assert stats.demoted_bytes > 40 * MIB
        assert stats.demotions_dropped == 0
        for version in [*versions, large]:
            assert cache.read_cached(version, 0, version.size) == store.objects[version.key] or version is large
            assert await cache.read(version, 0, version.size) == store.objects[version.key]
        assert store.requests == [], "everything is in one tier or the other"


async def test_what_the_ssd_is_asked_again_and_again_is_promoted(tmp_path: Path) -> None:
    store = FakeStore()
    versions = objects(store, 20)
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        for version in versions:
            cache.tiers.write(version, 0, store.objects[version.key], "ssd")
        in_ram = []
        for _ in range(40):
            for version in versions:
                assert cache.read_cached(version, 0, SMALL, reader=1) == store.objects[version.key]
            await settled(cache)
            in_ram.append(cache.stats().tiers[0].entries)
        assert in_ram[0] == 0, "one pass says nothing"
        assert in_ram[1] in (2, 3, 4, 5), "a hit earns an eighth of its size"
        assert in_ram[-1] == 20
        assert cache.stats().promoted_bytes == 20 * SMALL


async def test_promotion_is_paid_for_by_hits(tmp_path: Path) -> None:
    """Everything is asked again and again and RAM holds a quarter: beyond filling RAM, little is moved."""
    store = FakeStore()
    versions = objects(store, 320)
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        for version in versions:
            cache.tiers.write(version, 0, store.objects[version.key], "ssd")
        for _ in range(6):
            for version in versions:
                assert cache.read_cached(version, 0, SMALL) == store.objects[version.key]
                await settled(cache)
        stats = cache.stats()
        assert 0.8 * RAM < stats.promoted_bytes <= stats.ssd_bytes / 30 + RAM
        assert stats.demoted_bytes == 0, "the SSD had it all along"


async def test_a_scan_promotes_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    size = 24 * MIB
    version = store.add("large", content_of(1, size))
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        cache.tiers.write(version, 0, store.objects["large"], "ssd")
        for reader in range(1, 5):
            for offset in range(0, size, 128 * 1024):
                assert cache.read_cached(version, offset, 128 * 1024, reader=reader)
        await settled(cache)
        assert cache.stats().promoted_bytes < 4 * MIB


async def test_hot_places_of_a_large_object_are_promoted_by_the_chunk(tmp_path: Path) -> None:
    store = FakeStore()
    version = store.add("large", content_of(1, 64 * MIB))
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        cache.tiers.write(version, 0, store.objects["large"], "ssd")
        size = 32 * 1024
        places = [n * 3 * MIB + size for n in range(20)]
        for _ in range(50):  # a hit earns an eighth of its size
            for place in places:
                assert cache.read_cached(version, place, size, reader=1) == store.objects["large"][place : place + size]
            await settled(cache)
        assert cache.stats().promoted_bytes == 20 * 32 * 1024
        assert cache.stats().ram_hits > 100
        # One read over what RAM has of it and what only the SSD has.
        assert await cache.read(version, 0, 3 * MIB) == store.objects["large"][: 3 * MIB]
        assert store.requests == []


async def test_promotions_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    versions = objects(store, 50)
    async with cache_on(tmp_path, store, ram_bytes=RAM, options=CacheOptions(pending_bytes=3 * SMALL)) as cache:
        for version in versions:
            cache.tiers.write(version, 0, store.objects[version.key], "ssd")
        for _ in range(20):
            for version in versions:
                cache.read_cached(version, 0, SMALL)
                assert cache.stats().pending_promotion_bytes <= 3 * SMALL
        await settled(cache)
        assert cache.stats().tiers[0].entries > 0


async def test_a_pinned_version_stays_in_ram(tmp_path: Path) -> None:
    store = FakeStore()
    versions = objects(store, 200)
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        hold = cache.pins.add(owner="me", lease_s=60.0)
        hold.add(versions[0])
        for version in versions:
            cache.tiers.write(version, 0, store.objects[version.key], "ram")
        assert cache.cached(versions[0]).ram_bytes == SMALL
        assert cache.cached(versions[1]).ram_bytes == 0


async def test_a_failing_ssd_does_not_fail_what_ram_evicts(tmp_path: Path) -> None:
    store = FakeStore()
    versions = objects(store, 200)
    async with cache_on(tmp_path, store, ram_bytes=RAM) as cache:
        cache.tiers.ssd[0].close()
        for version in versions:
            assert await cache.read(version, 0, SMALL) == store.objects[version.key]
        await settled(cache)
        for version in versions:
            assert await asyncio.to_thread(cache.tiers.write, version, 0, store.objects[version.key], "ram") is None
        assert cache.stats().demotions_dropped > 0
        assert cache.stats().errors["tier_failed"] > 0


@pytest.mark.parametrize(("eviction", "least", "most"), [("epoch", 0.40, 0.55), ("lru", 0.0, 0.0)])
async def test_passes_over_twice_what_fits(tmp_path: Path, eviction: str, least: float, most: float) -> None:
    """In the same order each time: lru has always just evicted what comes next, epoch has half of it."""
    store = FakeStore()
    versions = objects(store, 160)
    # So little memory that what no tier took is not found there.
    options = CacheOptions(max_inflight_bytes=MIB, request_bytes=MIB)
    async with cache_on(tmp_path, store, ssd_bytes=(32 * MIB,), eviction=eviction, options=options) as cache:
        for number in range(4):
            if number == 1:
                first_pass = len(store.requests)
            for version in versions:
                assert await cache.read(version, 0, SMALL) == store.objects[version.key]
                await settled(cache)
        hit_rate = 1 - (len(store.requests) - first_pass) / (3 * len(versions))
        assert least <= hit_rate <= most
        if eviction == "epoch":
            assert cache.stats().tiers[0].evicted == 0
            assert cache.stats().errors == {}


async def test_tiers_keep_what_they_have_over_a_restart(tmp_path: Path) -> None:
    store = FakeStore()
    versions = [*objects(store, 20), store.add("large", content_of(3, 9 * MIB))]
    async with cache_on(tmp_path, store, ram_bytes=RAM, ssd_bytes=(64 * MIB, 64 * MIB)) as cache:
        for version in versions:
            await cache.read(version, 0, version.size)
        await settled(cache)
    requests = len(store.requests)
    async with cache_on(tmp_path, store, ram_bytes=RAM, ssd_bytes=(64 * MIB, 64 * MIB)) as cache:
        for version in versions:
            assert await cache.read(version, 0, version.size) == store.objects[version.key]
        assert len(store.requests) == requests
