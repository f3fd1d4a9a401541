"""The read side on real tiers and a scripted store: who gets which bytes, from where, and how often they are fetched."""

import asyncio
from pathlib import Path

import pytest

from forebay.cache.options import CacheOptions
from forebay.errors import ConfigError, ObjectChanged, StoreError, StoreUnavailable
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tiers.version import ObjectVersion

KIB = 1024


class TestReading:
    async def test_from_the_store_then_from_a_tier(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(1, 3 * MIB + 12_345)
        version = store.add("large", data)
        async with cache_on(tmp_path, store) as cache:
            assert cache.read_cached(version, 1000, 5000) is None
            assert await cache.read(version, 1000, 5000) == data[1000:6000]
            await settled(cache)
            assert cache.read_cached(version, 1000, 5000) == data[1000:6000]
            assert await cache.read(version, 0, 10 * MIB) == data
            await settled(cache)
            requests = len(store.requests)
            assert cache.read_cached(version, 3 * MIB - 7, 100_000) == data[3 * MIB - 7 :]
            assert len(store.requests) == requests

    async def test_beyond_the_end_there_is_nothing(self, tmp_path: Path) -> None:
        store = FakeStore()
        version, empty = store.add("k", b"12345"), store.add("empty", b"")
        async with cache_on(tmp_path, store) as cache:
            assert await cache.read(version, 3, 100) == b"45"
            assert await cache.read(version, 5, 1) == b""
            assert cache.read_cached(version, 900, 1) == b""
            assert await cache.read(empty, 0, 10) == b""

    async def test_a_small_object_is_fetched_whole_in_one_request(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(2, MIB)
        version = store.add("small", data)
        async with cache_on(tmp_path, store) as cache:
            assert await cache.read(version, 500_000, 10) == data[500_000:500_010]
            await settled(cache)
            assert cache.read_cached(version, 0, MIB) == data
            assert [(r.offset, r.size) for r in store.requests] == [(0, MIB)]

    async def test_without_any_tier_it_reads_through(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(3, 20 * MIB)
        version = store.add("large", data)
        async with cache_on(tmp_path, store, ssd_bytes=()) as cache:
            for offset in range(0, len(data), MIB):
                assert await cache.read(version, offset, MIB, reader=1) == data[offset : offset + MIB]
            assert store.fetched_bytes == len(data), "what is read ahead and taken by no tier is not fetched twice"

    async def test_several_folders_share_the_versions(self, tmp_path: Path) -> None:
        store = FakeStore()
        versions = [store.add(f"k{n}", content_of(n, 5000)) for n in range(60)]
        async with cache_on(tmp_path, store, ssd_bytes=(64 * MIB,) * 3) as cache:
            for version in versions:
                await cache.read(version, 0, 5000)
            await settled(cache)
            entries = [tier.entries for tier in cache.stats().tiers]
            assert sum(entries) == 60
            assert min(entries) > 5
            cache.tiers.ssd[0].close()
            for n, version in enumerate(versions):
                assert await cache.read(version, 0, 5000) == content_of(n, 5000)
            await settled(cache)
            assert all(cache.read_cached(version, 0, 1) for version in versions)

    async def test_a_long_read_comes_in_pieces_and_whole(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(4, 40 * MIB + 5)
        version = store.add("long", data)
        options = CacheOptions(max_inflight_bytes=16 * MIB)
        async with cache_on(tmp_path, store, options=options) as cache:
            assert await cache.read(version, 0, len(data), reader=9) == data
            assert store.fetched_bytes == len(data)

    async def test_what_vanishes_between_looking_and_reading_is_fetched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FakeStore()
        data = content_of(5, 2 * MIB)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            monkeypatch.setattr(cache.tiers.ssd[0], "missing", lambda *_: [])
            assert await cache.read(version, 100, 1000) == data[100:1100]

    async def test_an_unknown_store_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        async with cache_on(tmp_path, FakeStore()) as cache:
            with pytest.raises(StoreError, match="s3://elsewhere"):
                await cache.read(ObjectVersion("s3://elsewhere", "k", "e", 10), 0, 10)


class TestSingleFlight:
    async def test_one_fetch_for_a_hundred_readers(self, tmp_path: Path) -> None:
        store = FakeStore()
        store.gate = asyncio.Event()
        data = content_of(6, 200_000)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            readers = [asyncio.create_task(cache.read(version, 0, 200_000, reader=n)) for n in range(100)]
            await asyncio.sleep(0)
            readers[0].cancel()  # who asked first goes away
            await asyncio.sleep(0)
            store.gate.set()
            results = await asyncio.gather(*readers, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert all(result == data for result in results[1:])
            assert len(store.requests) == 1

    async def test_ranges_that_overlap_share_what_is_under_way(self, tmp_path: Path) -> None:
        store = FakeStore()
        store.gate = asyncio.Event()
        data = content_of(7, 8 * MIB)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            ranges = [(0, MIB), (MIB // 2, MIB), (2 * MIB, 64 * KIB), (0, 4 * MIB), (3 * MIB, 5 * MIB)]
            reads = [asyncio.create_task(cache.read(version, *r)) for r in ranges]
            await asyncio.sleep(0.01)
            store.gate.set()
            for read, (offset, size) in zip(reads, ranges, strict=True):
                assert await read == data[offset : offset + size]
            assert store.fetched_bytes == len(data), "each byte once"

    async def test_threads_and_tasks_together(self, tmp_path: Path) -> None:
        store = FakeStore(delay_s=0.001)
        data = content_of(8, 8 * MIB)
        version = store.add("k", data)
        async with cache_on(tmp_path, store, ram_bytes=32 * MIB) as cache:
            loop = asyncio.get_running_loop()

            def read_in_thread(reader: int) -> bool:
                for offset in range(0, len(data), 128 * KIB):
                    got = cache.read_cached(version, offset, 128 * KIB, reader=reader)
                    if got is None:
                        read = cache.read(version, offset, 128 * KIB, reader=reader)
                        got = asyncio.run_coroutine_threadsafe(read, loop).result(180)
                    if got != data[offset : offset + 128 * KIB]:
                        return False
                return True

            assert all(await asyncio.gather(*(asyncio.to_thread(read_in_thread, n + 1) for n in range(4))))
            assert store.fetched_bytes == len(data)


class TestFaults:
    async def test_a_failed_fill_marks_nothing_and_is_told_to_all(self, tmp_path: Path) -> None:
        store = FakeStore()
        store.script = [StoreUnavailable("refused")]
        data = content_of(9, 100_000)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            results = await asyncio.gather(*(cache.read(version, 0, 10) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(result, StoreUnavailable) for result in results)
            assert len({id(result) for result in results}) == 5
            assert cache.cached(version).cached_bytes == 0
            assert cache.read_cached(version, 0, 10) is None
            assert await cache.read(version, 0, 10) == data[:10]
            assert cache.stats().errors == {"store_unavailable": 1}

    async def test_an_outage_is_an_error_and_what_is_cached_is_served(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(10, 2 * MIB)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            await cache.read(version, 0, MIB)
            await settled(cache)
            store.down = StoreUnavailable("the store is down")
            assert cache.read_cached(version, 0, MIB) == data[:MIB]
            with pytest.raises(StoreUnavailable):
                await cache.read(version, MIB, 100)
            with pytest.raises(StoreUnavailable):
                await cache.read(version, MIB - 10, 100)
            store.down = None
            assert await cache.read(version, MIB - 10, 100) == data[MIB - 10 : MIB + 90]

    async def test_a_store_that_hangs_costs_the_timeout(self, tmp_path: Path) -> None:
        store = FakeStore()
        store.gate = asyncio.Event()
        data = content_of(11, 1000)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            with pytest.raises(StoreUnavailable, match="did not arrive in time"):
                await cache.read(version, 0, 10, timeout_s=0.05)
            store.gate.set()
            assert await cache.read(version, 0, 10) == data[:10]
            assert len(store.requests) == 1

    async def test_an_overwritten_object_is_an_error_never_other_bytes(self, tmp_path: Path) -> None:
        store = FakeStore()
        old = store.add("k", b"a" * 5_000_000)
        async with cache_on(tmp_path, store) as cache:
            assert await cache.read(old, 0, 10) == b"a" * 10
            await settled(cache)
            new = store.add("k", b"b" * 5_000_000)
            with pytest.raises(ObjectChanged):
                await cache.read(old, 4_000_000, 10)
            assert cache.read_cached(old, 0, 10) == b"a" * 10
            assert await cache.read(new, 4_000_000, 10) == b"b" * 10
            await settled(cache)
            assert cache.read_cached(old, 4_000_000, 10) is None

    async def test_a_store_that_answers_short_is_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FakeStore()
        version = store.add("k", content_of(12, 10_000))

        async def short(version: ObjectVersion, offset: int, size: int) -> bytes:
            return b"x" * (size - 1)

        monkeypatch.setattr(store, "get_range", short)
        async with cache_on(tmp_path, store) as cache:
            with pytest.raises(StoreError, match="9999 bytes arrived"):
                await cache.read(version, 0, 10)
            assert cache.cached(version).cached_bytes == 0

    async def test_a_bug_in_a_store_reaches_the_reader_and_not_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = FakeStore()
        version = store.add("k", content_of(13, 10_000))
        async with cache_on(tmp_path, store) as cache:
            with monkeypatch.context() as patch:
                patch.setattr(store, "get_range", None)
                with pytest.raises(StoreError, match="TypeError"):
                    await cache.read(version, 0, 10)
            assert "in a way that it should not" in caplog.text
            assert await cache.read(version, 0, 10)

    async def test_a_tier_that_takes_nothing_does_not_matter_to_readers(self, tmp_path: Path) -> None:
        store = FakeStore()
        data = content_of(14, 6 * MIB)
        version = store.add("k", data)
        async with cache_on(tmp_path, store) as cache:
            cache.tiers.ssd[0].close()
            for offset in range(0, len(data), 128 * KIB):
                assert await cache.read(version, offset, 128 * KIB, reader=4) == data[offset : offset + 128 * KIB]
            await settled(cache)
            stats = cache.stats()
            assert stats.not_cached_bytes == len(data) == store.fetched_bytes
            assert stats.errors["tier_failed"] > 0
            assert stats.inflight_bytes > 0  # kept in memory until its room is needed

    async def test_closing_answers_who_waits(self, tmp_path: Path) -> None:
        store = FakeStore()
        store.gate = asyncio.Event()
        version = store.add("k", content_of(15, 1000))
        async with cache_on(tmp_path, store) as cache:
            read = asyncio.create_task(cache.read(version, 0, 10))
            await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable, match="closing"):
            await read
        with pytest.raises(StoreUnavailable, match="closed"):
            await cache.read(version, 0, 10)
        assert cache.read_cached(version, 0, 10) is None


class TestBounds:
    async def test_bytes_in_flight_are_bounded(self, tmp_path: Path) -> None:
        store = FakeStore(delay_s=0.001)
        versions = [store.add(f"k{n}", content_of(n, MIB)) for n in range(40)]
        options = CacheOptions(max_inflight_bytes=8 * MIB)
        async with cache_on(tmp_path, store, options=options) as cache:
            reads = [asyncio.create_task(cache.read(version, 0, MIB)) for version in versions]
            most = 0
            while not all(read.done() for read in reads):
                most = max(most, cache.stats().inflight_bytes)
                await asyncio.sleep(0)
            assert [await read for read in reads] == [content_of(n, MIB) for n in range(40)]
            assert 0 < most <= 8 * MIB
            assert store.most_running <= 8

    async def test_kept_bytes_make_room_for_who_waits(self, tmp_path: Path) -> None:
        store = FakeStore()
        versions = [store.add(f"k{n}", content_of(n, MIB)) for n in range(30)]
        async with cache_on(tmp_path, store, ssd_bytes=(), options=CacheOptions(max_inflight_bytes=8 * MIB)) as cache:
            for n, version in enumerate(versions):
                assert await cache.read(version, 0, MIB) == content_of(n, MIB)
            await settled(cache)
            assert cache.stats().inflight_bytes <= 8 * MIB

    async def test_cancelled_readers_leave_nothing_behind(self, tmp_path: Path) -> None:
        store = FakeStore(delay_s=0.002)
        versions = [store.add(f"k{n}", content_of(n, MIB)) for n in range(20)]
        async with cache_on(tmp_path, store, options=CacheOptions(max_inflight_bytes=8 * MIB)) as cache:
            reads = [asyncio.create_task(cache.read(version, 0, MIB)) for version in versions]
            await asyncio.sleep(0.003)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            await settled(cache)
            assert cache.stats().inflight_bytes == 0
            assert cache.fills.by_digest == {}

    @pytest.mark.parametrize(
        "wrong",
        [{"random_fill_bytes": 1000}, {"request_bytes": 0}, {"max_inflight_bytes": MIB}, {"timeout_s": 0.0}],
    )
    def test_options_that_make_no_sense_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ConfigError):
            CacheOptions(**wrong)
