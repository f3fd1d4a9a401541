"""What one local tier costs: `python -m forebay.benchmarks.micro_tier [FOLDER]` (default: on /dev/shm). Medians.

Everything is read from the page cache: what is measured is us, not the disk.
"""

import argparse
import itertools
import random
import shutil
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..tiers.local import FifoPolicy, LocalTier, TierOptions
from ..tiers.local.index import EntryIndex
from ..tiers.version import BLOCK_BYTES, ObjectVersion

MIB = 1024 * 1024
LARGE_BYTES = 256 * MIB
SMALL_BYTES = 110_000
SMALL_COUNT = 1500
TINY_COUNT = 1_000_000
CAPACITY_BYTES = 2048 * MIB


def median_us(operation: Callable[[], object], count: int, rounds: int = 7) -> float:
    """Microseconds of one operation: the median of several rounds."""
    for _ in range(count // 10):
        operation()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            operation()
        taken.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(taken)


def in_threads(operation: Callable[[], object], count: int, threads: int = 2) -> float:
    """Microseconds of wall time of one operation when `threads` do it at once."""

    def work() -> None:
        for _ in range(count):
            operation()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - start) / (count * threads) * 1e6


def open_tier(folder: Path) -> LocalTier:
    return LocalTier.open(TierOptions("ram", folder, CAPACITY_BYTES, free_space_ratio=0.0), FifoPolicy())


def report(what: str, value: float, unit: str) -> None:
    print(f"{what:<58} {value:>10.2f} {unit}")


def reads_and_writes(folder: Path) -> None:
    tier = open_tier(folder)
    large = ObjectVersion("s3://bench", "large", "e", LARGE_BYTES)
    data = np.random.default_rng(1).bytes(BLOCK_BYTES)
    start = time.perf_counter()
    for offset in range(0, LARGE_BYTES, BLOCK_BYTES):
        tier.write(large, offset, data)
    report("write a large object, 4 MiB at a time", LARGE_BYTES / 1e6 / (time.perf_counter() - start), "MB/s")
    small = [ObjectVersion("s3://bench", f"small{i}", "e", SMALL_BYTES) for i in range(SMALL_COUNT)]
    start = time.perf_counter()
    for version in small:
        tier.write(version, 0, data[:SMALL_BYTES])
    report("write a 110 KB object", (time.perf_counter() - start) / SMALL_COUNT * 1e6, "us")

    choose = random.Random(1)
    pages = itertools.cycle([choose.randrange(LARGE_BYTES // 4096) * 4096 for _ in range(10_007)])
    report("read 4 KiB at random, large object", median_us(lambda: tier.read(large, next(pages), 4096), 10_000), "us")
    report("  the same in 2 threads", in_threads(lambda: tier.read(large, next(pages), 4096), 20_000), "us")
    turn = itertools.cycle(small)
    report("read a 110 KB object whole", median_us(lambda: tier.read(next(turn), 0, SMALL_BYTES), 3000), "us")
    steps = itertools.cycle(range(0, LARGE_BYTES, MIB))
    report("read 1 MiB in sequence", MIB / median_us(lambda: tier.read(large, next(steps), MIB), 1000) / 1e3, "GB/s")
    report("  the same in 2 threads", MIB / in_threads(lambda: tier.read(large, next(steps), MIB), 1000) / 1e3, "GB/s")
    absent = ObjectVersion("s3://bench", "absent", "e", LARGE_BYTES)
    report("a miss", median_us(lambda: tier.read(absent, 0, 4096), 10_000), "us")
    report("missing() of a present block", median_us(lambda: tier.missing(large, 0, BLOCK_BYTES), 10_000), "us")
    tier.close()


def restart(folder: Path) -> None:
    tier = open_tier(folder)
    start = time.perf_counter()
    for i in range(TINY_COUNT):
        tier.write(ObjectVersion("s3://bench", f"tiny{i}", "e", 100), 0, bytes(100))
    report("write a 100-byte object", (time.perf_counter() - start) / TINY_COUNT * 1e6, "us")
    tier.close()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        tier = open_tier(folder)
        taken.append(time.perf_counter() - start)
        assert tier.stats().entries >= TINY_COUNT
        tier.close()
    report(f"open with {TINY_COUNT:,} small objects", statistics.median(taken), "s")


def index_memory() -> None:
    tracemalloc.start()
    index = EntryIndex()
    keys = np.random.default_rng(1).integers(1, 2**63, (2, TINY_COUNT), np.uint64)
    before = tracemalloc.get_traced_memory()[0]
    index.add_many(keys[0], keys[1], keys[0])
    report("index, per entry", (tracemalloc.get_traced_memory()[0] - before) / TINY_COUNT, "bytes")
    tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/dev/shm"), help="where to make a temporary tier")
    folder = Path(tempfile.mkdtemp(prefix="forebay-micro-", dir=parser.parse_args().folder))
    try:
        reads_and_writes(folder / "reads")
        restart(folder / "restart")
        index_memory()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
