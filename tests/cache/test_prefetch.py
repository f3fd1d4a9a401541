"""Prefetch: what it brings, what it holds, and that its receipt tells the truth about both."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from forebay.cache.block_cache import BlockCache
from forebay.cache.options import CacheOptions
from forebay.cache.prefetch import Prefetch, Progress, Receipt, Wanted, free, make_plan
from forebay.cache.tier_set import TierName
from forebay.errors import ForebayError, ObjectNotFound, StoreUnavailable, UsageError
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tiers.version import ObjectVersion

HOUR_S = 3600.0


async def each(versions: Sequence[ObjectVersion]) -> AsyncIterator[Wanted]:
    for version in versions:
        yield Wanted(version.key, version)


def data_set(store: FakeStore, *, small: int = 30, large: int = 2, first: int = 0) -> list[ObjectVersion]:
    """Some small objects, some of several blocks, and an empty one."""
    versions = [store.add(f"small-{n}", content_of(n, 10_000 + n)) for n in range(first, first + small)]
    versions += [store.add(f"large-{n}", content_of(n, 9 * MIB + n)) for n in range(first, first + large)]
    return [*versions, store.add("empty", b"")]


def assert_adds_up(receipt: Receipt) -> None:
    assert receipt.present_objects + receipt.missing_objects == receipt.asked_objects
    assert receipt.present_bytes + receipt.missing_bytes == receipt.asked_bytes
    assert receipt.ram.size_bytes + receipt.ssd.size_bytes == receipt.present_bytes
    assert receipt.ram.objects + receipt.ssd.objects == receipt.present_objects
    assert sum(receipt.missing_reasons.values()) == receipt.missing_objects
    assert 0 <= receipt.present_fraction <= 1
    assert receipt.complete == (receipt.ended and receipt.missing_objects == 0)
    json.dumps(receipt.to_json())


@pytest.mark.parametrize("to", [None, "ssd", "ram"])
async def test_brings_everything_once(tmp_path: Path, to: TierName | None) -> None:
    store = FakeStore()
    versions = data_set(store)
    total = sum(version.size for version in versions)
    async with cache_on(tmp_path, store, ram_bytes=64 * MIB) as cache:
        receipt = await Prefetch(cache, to=to, purpose="s3://fake/").run(each(versions))
        assert_adds_up(receipt)
        assert receipt.complete
        assert (receipt.present_bytes, receipt.fetched_bytes) == (total, total) == (store.fetched_bytes,) * 2
        assert receipt.requests == len(store.requests) == 30 + 2 * 2
        part = receipt.ram if to == "ram" else receipt.ssd
        assert (part.objects, part.blocks, part.size_bytes) == (33, 30 + 2 * 3, total)
        again = await Prefetch(cache, to=to).run(each(versions))
        assert_adds_up(again)
        assert again.complete
        assert (again.requests, again.found_objects, again.found_bytes) == (0, 33, total)
        store.down = StoreUnavailable("down")
        for version in versions:
            assert cache.read_cached(version, 0, version.size) == store.objects[version.key]


async def test_from_ssd_to_ram_nothing_is_fetched(tmp_path: Path) -> None:
    store = FakeStore()
    versions = data_set(store)
    async with cache_on(tmp_path, store, ram_bytes=64 * MIB) as cache:
        await Prefetch(cache, to="ssd").run(each(versions))
        store.down = StoreUnavailable("down")
        receipt = await Prefetch(cache, to="ram").run(each(versions))
        assert receipt.complete
        assert receipt.requests == 0
        assert cache.cached(versions[-2]).ram_blocks == cache.cached(versions[-2]).ssd_blocks == 3


async def test_what_is_partly_here_is_completed(tmp_path: Path) -> None:
    store = FakeStore()
    (large,) = data_set(store, small=0, large=1)[:1]
    async with cache_on(tmp_path, store) as cache:
        await cache.read(large, 5 * MIB, 100)
        await settled(cache)
        before = store.fetched_bytes
        receipt = await Prefetch(cache).run(each([large]))
        assert receipt.complete
        assert receipt.fetched_bytes == large.size - before


async def test_check_and_plan_fetch_nothing_for_keeps(tmp_path: Path) -> None:
    store = FakeStore()
    versions = data_set(store)
    async with cache_on(tmp_path, store, ram_bytes=64 * MIB) as cache:
        await Prefetch(cache).run(each(versions[:20]))
        fetched = store.fetched_bytes
        receipt = await Prefetch(cache).check(each(versions))
        assert_adds_up(receipt)
        assert not receipt.complete
        assert receipt.missing_reasons == {"not_cached": 12}
        assert store.fetched_bytes == fetched
        plan = await make_plan(cache, each(versions))
        assert (plan.asked_objects, plan.fetch_objects, plan.ssd.objects) == (33, 12, 21)
        assert plan.fetch_bytes == sum(version.size for version in versions[20:])
        assert plan.fits
        assert plan.rate_bytes_s > 0
        assert plan.estimated_s is not None
        json.dumps(plan.to_json())
        assert (await Prefetch(cache).check(each(versions))).present_objects == 21
        store.down = StoreUnavailable("no route")
        plan = await make_plan(cache, each(versions))
        assert plan.estimated_s is None
        assert plan.rate_problem == "no route"


async def test_a_lease_holds_what_was_brought(tmp_path: Path) -> None:
    store = FakeStore()
    first = [store.add(f"a{n}", content_of(n, 900_000)) for n in range(20)]
    second = [store.add(f"b{n}", content_of(n, 900_000)) for n in range(40)]
    async with cache_on(tmp_path, store, ssd_bytes=(32 * MIB,)) as cache:
        receipt = await Prefetch(cache, lease_s=HOUR_S, owner="job-7", purpose="a").run(each(first))
        assert receipt.complete
        assert receipt.pin is not None
        assert (receipt.pin.owner, receipt.pin.objects, receipt.pin.lease_s) == ("job-7", 20, HOUR_S)
        plan = await make_plan(cache, each(second))
        assert not plan.fits
        assert plan.pinned_by_others_bytes == 20 * 900_000
        for version in second:
            await cache.read(version, 0, 10)
        await settled(cache)
        assert (await Prefetch(cache).check(each(first))).complete
        freed = await free(cache, each(first))
        assert (freed.freed_objects, freed.pinned_objects) == (0, 20)
        assert cache.pins.remove(receipt.pin.id)
        freed = await free(cache, each(first))
        assert (freed.freed_objects, freed.freed_bytes) == (20, 20 * 900_000)


async def test_it_does_not_evict_itself_and_says_what_does_not_fit(tmp_path: Path) -> None:
    store = FakeStore()
    versions = [store.add(f"k{n}", content_of(n, 900_000)) for n in range(60)]
    options = CacheOptions(prefetch_requests=4)
    async with cache_on(tmp_path, store, ssd_bytes=(32 * MIB,), options=options) as cache:
        assert not (await make_plan(cache, each(versions))).fits
        receipt = await Prefetch(cache).run(each(versions))
        assert_adds_up(receipt)
        assert not receipt.complete
        assert set(receipt.missing_reasons) == {"tier_full"}
        assert receipt.present_objects >= 25
        checked = await Prefetch(cache).check(each(versions))
        assert checked.present_objects == receipt.present_objects
        assert receipt.requests < 60, "once it is full, nothing more is fetched in vain"
        assert cache.pins.list() == []
        stats = cache.stats()
        assert stats.inflight_bytes <= cache.options.max_inflight_bytes


async def test_single_objects_may_fail(tmp_path: Path) -> None:
    store = FakeStore()
    versions = data_set(store)
    del store.objects["small-3"]
    store.objects["small-4"] += b"!"
    async with cache_on(tmp_path, store) as cache:
        receipt = await Prefetch(cache).run(each(versions))
        assert_adds_up(receipt)
        assert receipt.missing_reasons == {"object_not_found": 1, "object_changed": 1}
        assert {missing.path for missing in receipt.missing_examples} == {"small-3", "small-4"}
        assert receipt.present_objects == 31


async def test_an_outage_ends_in_a_receipt(tmp_path: Path) -> None:
    store = FakeStore()
    versions = data_set(store, small=300, large=0)
    store.down = StoreUnavailable("refused")
    async with cache_on(tmp_path, store) as cache:
        receipt = await Prefetch(cache).run(each(versions))
        assert_adds_up(receipt)
        assert receipt.missing_reasons == {"store_unavailable": 300}
        assert len(receipt.missing_examples) == 100
        store.down = None
        assert (await Prefetch(cache).run(each(versions))).complete


async def test_a_listing_that_fails_is_raised_after_what_began(tmp_path: Path) -> None:
    store = FakeStore(delay_s=0.001)
    versions = data_set(store, small=100, large=0)

    async def broken() -> AsyncIterator[Wanted]:
        async for item in each(versions):
            yield item
        raise StoreUnavailable("the listing broke off")

    async with cache_on(tmp_path, store) as cache:
        prefetch = Prefetch(cache)
        with pytest.raises(StoreUnavailable, match="broke off"):
            await prefetch.run(broken())
        assert_adds_up(prefetch.receipt)
        assert prefetch.receipt.present_objects == 101
        assert not prefetch.receipt.complete
        assert cache.pins.list() == []


@pytest.mark.parametrize("lease_s", [None, HOUR_S])
async def test_stopping_leaves_a_receipt_and_going_on_fetches_the_rest(tmp_path: Path, lease_s: float | None) -> None:
    store = FakeStore(delay_s=0.002)
    versions = data_set(store, small=400, large=4)
    async with cache_on(tmp_path, store, options=CacheOptions(prefetch_requests=8)) as cache:
        prefetch = Prefetch(cache, lease_s=lease_s)
        task = asyncio.create_task(prefetch.run(each(versions)))
        while len(store.requests) < 50:  # noqa: ASYNC110 - that is the condition
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopped = prefetch.receipt
        assert_adds_up(stopped)
        assert 0 < stopped.present_objects < 400
        assert stopped.missing_reasons.get("stopped", 0) > 0
        assert not stopped.complete
        assert (stopped.pin is not None) == (lease_s is not None)
        await settled(cache)
        receipt = await Prefetch(cache).run(each(versions))
        assert receipt.complete
        assert receipt.found_objects >= stopped.present_objects
        assert store.fetched_bytes == sum(version.size for version in versions), "nothing twice"


async def test_readers_and_a_prefetch_share_fetches(tmp_path: Path) -> None:
    store = FakeStore(delay_s=0.001)
    versions = data_set(store, small=50, large=3)
    async with cache_on(tmp_path, store, ram_bytes=32 * MIB) as cache:

        async def read_all() -> None:
            for version in versions:
                for offset in range(0, version.size, MIB):
                    expected = store.objects[version.key][offset : offset + MIB]
                    assert await cache.read(version, offset, MIB, reader=1 + versions.index(version)) == expected

        receipt, *_ = await asyncio.gather(Prefetch(cache, to="ssd").run(each(versions)), read_all(), read_all())
        assert receipt.complete
        assert (await Prefetch(cache, to="ssd").check(each(versions))).complete
        await settled(cache)
        assert store.fetched_bytes <= 1.5 * sum(version.size for version in versions)


async def test_progress_comes_to_its_end(tmp_path: Path) -> None:
    store = FakeStore()
    versions = data_set(store)
    total = sum(version.size for version in versions)
    told: list[Progress] = []
    async with cache_on(tmp_path, store) as cache:
        await Prefetch(cache, progress=told.append, total_objects=33, total_bytes=total).run(each(versions))
    assert (told[-1].objects, told[-1].size_bytes, told[-1].total_bytes) == (33, total, total)
    assert all(progress.size_bytes <= total for progress in told)


async def test_bounded_requests_and_bytes(tmp_path: Path) -> None:
    store = FakeStore(delay_s=0.001)
    versions = data_set(store, small=100, large=5)
    options = CacheOptions(prefetch_requests=6, max_inflight_bytes=20 * MIB)
    async with cache_on(tmp_path, store, options=options) as cache:
        assert (await Prefetch(cache).run(each(versions))).complete
        assert store.most_running <= 6


async def test_a_tier_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with cache_on(tmp_path, FakeStore()) as cache:
        with pytest.raises(UsageError, match="no ram tier"):
            Prefetch(cache, to="ram")


async def test_a_bug_is_told_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    versions = data_set(store)

    def broken(cache: BlockCache) -> None:
        raise ZeroDivisionError

    async with cache_on(tmp_path, store) as cache:
        monkeypatch.setattr(cache.fills, "uncovered", broken)
        receipt = await Prefetch(cache).run(each(versions))
        assert_adds_up(receipt)
        assert receipt.missing_reasons == {ForebayError.kind: 32}
        assert "in a way that it should not" in caplog.text


def test_reasons_are_bounded() -> None:
    receipt = Receipt()
    for number in range(1000):
        receipt.count_missing(f"k{number}", 1, ObjectNotFound.kind, "gone")
    assert receipt.missing_objects == 1000
    assert len(receipt.missing_examples) == 100
