"""Readahead: who reads on is run ahead of, who does not is not amplified, and nobody is fooled by what looks alike."""

import asyncio
import random
from pathlib import Path

import pytest

from forebay.cache.block_cache import BlockCache
from forebay.cache.options import CacheOptions
from forebay.cache.readahead import MAX_HEADS, MAX_READERS, Readers
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tiers.version import ObjectVersion

KIB = 1024
SIZE = 64 * MIB


@pytest.fixture(scope="module")
def content() -> bytes:
    return content_of(42, SIZE)


async def read_all(
    cache: BlockCache, version: ObjectVersion, content: bytes, ranges: list[tuple[int, int]], reader: int = 1
) -> None:
    """Read as a mount does: what is cached in place, the rest through the loop."""
    for offset, size in ranges:
        data = cache.read_cached(version, offset, size, reader=reader)
        if data is None:
            data = await cache.read(version, offset, size, reader=reader)
        assert data == content[offset : offset + size]
        await asyncio.sleep(0)


def ordered(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(offset, step) for offset in range(start, stop, step)]


class TestWhatIsFetched:
    async def test_sequential_in_few_large_requests_each_byte_once(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore(delay_s=0.002)
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            await read_all(cache, version, content, ordered(0, SIZE, 128 * KIB))
            await settled(cache)
            assert store.fetched_bytes == SIZE
            assert len(store.requests) < 60
            assert store.most_running >= 4
            assert max(request.size for request in store.requests) == 4 * MIB  # 64 MiB of window come at its end only
            stats = cache.stats()
            assert stats.misses < 100, "most of the 512 reads find what was fetched ahead"
            assert stats.readahead_bytes > 0.9 * SIZE
            cache.forget_reader(1)
            assert cache.stats().readahead_wasted_bytes == 0
            assert cache.stats().readers == 0

    async def test_random_4_kib_reads_are_not_amplified(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore()
        version = store.add("k", content)
        rng = random.Random(1)
        async with cache_on(tmp_path, store) as cache:
            ranges = [(rng.randrange(SIZE // 4096) * 4096, 4096) for _ in range(300)]
            await read_all(cache, version, content, ranges)
            await settled(cache)
            assert all(request.size == 64 * KIB for request in store.requests)
            assert cache.stats().amplification <= 16

    async def test_random_megabytes_are_not_amplified(self, tmp_path: Path, content: bytes) -> None:
        """Each arrives in eight pieces that look sequential."""
        store = FakeStore()
        version = store.add("k", content)
        rng = random.Random(2)
        async with cache_on(tmp_path, store) as cache:
            starts = rng.sample(range(1, SIZE // MIB - 1, 2), 24)
            for start in starts:
                await read_all(cache, version, content, ordered(start * MIB, (start + 1) * MIB, 128 * KIB))
            await settled(cache)
            assert cache.stats().amplification < 1.5

    async def test_strided_reads_are_not_taken_for_sequential(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore()
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            await read_all(cache, version, content, [(offset, 4096) for offset in range(0, SIZE, 256 * KIB)])
            await settled(cache)
            assert cache.stats().readahead_bytes == 0
            assert cache.stats().amplification <= 16

    async def test_backward_reads_are_not_taken_for_sequential(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore()
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            ranges = ordered(SIZE // 2, SIZE, 128 * KIB)[::-1]
            await read_all(cache, version, content, ranges)
            await settled(cache)
            assert cache.stats().amplification <= 1.1

    async def test_several_places_of_one_reader(self, tmp_path: Path, content: bytes) -> None:
        """Several processes read one file through one mount: for the cache they are one reader."""
        store = FakeStore(delay_s=0.001)
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            quarter = SIZE // 4
            columns = [ordered(n * quarter, (n + 1) * quarter, 128 * KIB) for n in range(4)]
            await read_all(cache, version, content, [r for row in zip(*columns, strict=True) for r in row])
            await settled(cache)
            assert store.fetched_bytes <= 1.05 * SIZE
            assert len(store.requests) < 200

    async def test_pieces_out_of_order(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore(delay_s=0.001)
        version = store.add("k", content)
        rng = random.Random(3)
        ranges = []
        for start in range(0, SIZE, MIB):
            pieces = ordered(start, start + MIB, 128 * KIB)
            rng.shuffle(pieces)
            ranges += pieces
        async with cache_on(tmp_path, store) as cache:
            await read_all(cache, version, content, ranges)
            await settled(cache)
            assert store.fetched_bytes == SIZE
            assert len(store.requests) < 60

    async def test_many_readers_share_the_budget(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore(delay_s=0.001)
        part = 8 * MIB
        versions = [store.add(f"k{n}", content[n * part : (n + 1) * part]) for n in range(8)]
        options = CacheOptions(max_inflight_bytes=8 * MIB)
        async with cache_on(tmp_path, store, options=options) as cache:
            await asyncio.gather(
                *(
                    read_all(cache, version, content[n * part : (n + 1) * part], ordered(0, part, 128 * KIB), n + 1)
                    for n, version in enumerate(versions)
                )
            )
            await settled(cache)
            assert store.fetched_bytes == SIZE
            assert store.most_running <= 8 * MIB // (64 * KIB)

    async def test_a_reader_that_stops_wastes_at_most_twice_what_it_read(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore()
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            await read_all(cache, version, content, ordered(0, 4 * MIB, 128 * KIB))
            await settled(cache)
            cache.forget_reader(1)
            assert 0 < cache.stats().readahead_wasted_bytes <= 8 * MIB + 4 * MIB
            assert store.fetched_bytes <= 3 * 4 * MIB + MIB

    async def test_what_was_read_ahead_stays_in_memory_until_it_is_passed(self, tmp_path: Path, content: bytes) -> None:
        store = FakeStore()
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            for offset, size in ordered(0, SIZE, MIB):
                await read_all(cache, version, content, [(offset, size)])
                await settled(cache)  # the tier has it all by now
                assert cache.stats().inflight_bytes <= 2 * offset + 16 * MIB
            stats = cache.stats()
            assert stats.memory_hits > 40
            assert stats.ssd_hits < 10
            assert stats.inflight_bytes == 0

    async def test_the_disk_is_told_what_comes(
        self, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FakeStore()
        version = store.add("k", content)
        async with cache_on(tmp_path, store) as cache:
            await cache.read(version, 0, SIZE)
            await settled(cache)
            told: list[tuple[int, int]] = []
            monkeypatch.setattr(cache.tiers.ssd[0], "readahead", lambda _, offset, size: told.append((offset, size)))
            await read_all(cache, version, content, ordered(0, SIZE, 128 * KIB))
            covered = 0
            for offset, size in sorted(told):
                assert offset <= covered + 128 * KIB
                covered = max(covered, offset + size)
            assert covered == SIZE
            assert sum(size for _, size in told) < 1.1 * SIZE
            assert cache.stats().readahead_bytes == 0 or store.fetched_bytes == SIZE


class TestBookkeeping:
    def test_bounded(self) -> None:
        readers = Readers(64 * MIB, 8 * MIB)
        for number in range(MAX_READERS + 100):
            for place in range(20):
                readers.note(number, place * 100 * MIB, place * 100 * MIB + 4096)
        assert len(readers) == MAX_READERS
        assert all(len(reader.heads) == MAX_HEADS for reader in readers._readers.values())
        for number in range(MAX_READERS + 100):
            readers.forget(number)
        assert len(readers) == 0

    def test_window_grows_with_the_run_up_to_its_limit(self) -> None:
        readers = Readers(64 * MIB, 8 * MIB)
        windows = []
        for start in range(0, 64 * MIB, MIB):
            readers.note(1, start, start + MIB)
            (head,) = readers._readers[1].heads
            windows.append(readers.window(1, head))
        assert windows[0] == 2 * MIB
        assert windows == sorted(windows)
        assert windows[-1] == 64 * MIB
        assert readers.request_size(windows[0]) == 512 * KIB
        assert readers.request_size(windows[-1]) == 8 * MIB
        assert readers.reading_on(1)
        assert not readers.reading_on(2)
