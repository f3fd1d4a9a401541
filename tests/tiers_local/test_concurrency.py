"""Threads that read, write, drop and evict at once: right bytes or a miss, and accounts that hold."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from forebay.errors import TierFailed, TierFull
from forebay.tests.tiers_local import disks
from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tests.tiers_local.policies import RandomPolicy
from forebay.tiers.local import LocalTier, TierOptions
from forebay.tiers.version import CHUNK_BYTES, ObjectVersion

MIB = 1024 * 1024
CAPACITY_BYTES = 20 * MIB
SIZES = [200, 2000, 9000, 60_000, 110_000, 900_000, 3 * MIB + 7, 9 * MIB]
VERSIONS = [version_of(f"k{i}", SIZES[i % len(SIZES)]) for i in range(80)]
CONTENT = {version: content_of(version) for version in VERSIONS}


def run(workers: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(worker: Callable[[], None]) -> None:
        try:
            worker()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


def test_readers_and_writers_race_with_evictions_on_a_disk(tmp_path: Path) -> None:
    race(tmp_path / "tier", lambda: 0)


def test_readers_and_writers_race_with_evictions_and_the_limit_holds(tmp_path: Path) -> None:
    with disks.tmpfs(tmp_path / "tmpfs", 4 * CAPACITY_BYTES) as folder:
        assert race(folder, partial(disks.taken_bytes, folder)) > 0.9 * CAPACITY_BYTES


def race(folder: Path, taken_bytes: Callable[[], int]) -> int:
    """Two writers, two readers, and one who looks how much is taken; the most that was."""
    options = TierOptions("ssd", folder, CAPACITY_BYTES, free_space_ratio=0.0, max_open_files=16)
    handed: list[int] = []

    def on_evict(version: object, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert data == CONTENT[version][offset : offset + len(data)]  # type: ignore[index]
        handed.append(len(data))

    tier = LocalTier.open(options, RandomPolicy(), on_evict=on_evict)
    try:
        hits, peak = [0], [0]
        stop = threading.Event()

        def write(seed: int) -> None:
            choose = random.Random(seed)
            for _ in range(700):
                version = choose.choice(VERSIONS)
                data = CONTENT[version]
                try:
                    if version.is_small:
                        tier.write(version, 0, data)
                    else:
                        offset = choose.randrange(version.size) // CHUNK_BYTES * CHUNK_BYTES
                        tier.write(version, offset, data[offset : offset + choose.choice([1, 16, 128]) * CHUNK_BYTES])
                except TierFull:
                    pass  # the other writer holds all of the room just now
                if choose.random() < 0.05:
                    tier.drop(version)

        def read(seed: int) -> None:
            choose = random.Random(seed)
            while not stop.is_set():
                version = choose.choice(VERSIONS)
                offset = choose.randrange(version.size)
                size = choose.choice([1, 4096, 200_000, version.size])
                found = tier.read(version, offset, size)
                if found is not None:
                    assert found == CONTENT[version][offset : offset + size]
                    hits[0] += 1
                tier.missing(version, offset, size)

        def sample() -> None:
            """What the disk says, at every moment: never above the capacity."""
            while not stop.is_set():
                taken = taken_bytes()
                assert taken <= CAPACITY_BYTES
                peak[0] = max(peak[0], taken)
                time.sleep(0.001)

        def writers() -> None:
            try:
                run([lambda: write(1), lambda: write(2)])
            finally:
                stop.set()

        run([writers, lambda: read(3), lambda: read(4), sample])
        tier.validate()
        assert tier.stats().corrupt == 0
        assert tier.stats().evicted > 50
        assert hits[0] > 10
        assert handed
        for version in VERSIONS:
            tier.drop(version)
        tier.validate()
        assert tier.stats().entries == 0
        return peak[0]
    finally:
        tier.close()


def write_together(tier: LocalTier, version: ObjectVersion, barrier: threading.Barrier) -> None:
    barrier.wait()
    tier.write(version, 0, content_of(version))


def test_the_same_object_written_by_many_at_once_is_kept_once(tmp_path: Path) -> None:
    options = TierOptions("ssd", tmp_path / "tier", 64 * MIB, free_space_ratio=0.0)
    tier = LocalTier.open(options, RandomPolicy())
    try:
        for size in (5000, 110_000, 5 * MIB):
            version = version_of(f"same{size}", size)
            data = content_of(version)
            barrier = threading.Barrier(4)

            run([partial(write_together, tier, version, barrier)] * 4)
            assert tier.read(version, 0, size) == data
        assert tier.stats().entries == 4  # the largest has two blocks
        tier.validate()
    finally:
        tier.close()


def test_files_kept_open_are_bounded_and_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    options = TierOptions("ssd", tmp_path / "tier", 256 * MIB, free_space_ratio=0.0, max_open_files=16)
    tier = LocalTier.open(options, RandomPolicy())
    versions = [version_of(f"k{i}", MIB + 1) for i in range(60)]
    for version in versions:
        tier.write(version, 0, content_of(version))
    for version in versions:
        assert tier.read(version, MIB - 10, 11) == content_of(version)[-11:]
        assert len(os.listdir("/proc/self/fd")) - before <= 16 + 4
    tier.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_waits_for_writers_and_then_the_folder_is_free(tmp_path: Path) -> None:
    options = TierOptions("ssd", tmp_path / "tier", 64 * MIB, free_space_ratio=0.0)
    for _ in range(10):
        tier = LocalTier.open(options, RandomPolicy())
        refused = threading.Event()

        def work(tier: LocalTier = tier, refused: threading.Event = refused) -> None:
            while not refused.is_set():
                for version in VERSIONS:
                    tier.read(version, 0, version.size)
                    try:
                        tier.write(version, 0, CONTENT[version])
                    except TierFailed:
                        refused.set()
                        return
                    tier.drop(version)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)  # close in the middle of something, whatever it is
        tier.close()
        with contextlib.closing(LocalTier.open(options, RandomPolicy())) as after:
            after.validate()
            for version in VERSIONS:
                found = after.read(version, 0, version.size)
                assert found is None or found == CONTENT[version]
            assert after.stats().corrupt == 0
        for thread in threads:
            thread.join()
