"""What the read side costs by itself: `python -m forebay.benchmarks.micro_cache [overhead|cold|prefetch|policies ...]`.

    overhead    read_cached against the tier's own read, per call
    cold        one object of 1 GiB, never seen, through the cache; beside obstore with 16 ranges of 8 MiB in flight
    prefetch    objects of 110 KB into the SSD tier; beside s5cmd copying them into a folder, if it is installed
    policies    admission, hit and eviction of a million entries

Each prints medians and, where there are two sides, their ratio. The under store is a SeaweedFS on this machine.
"""

import argparse
import asyncio
import itertools
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

from forebay.cache.block_cache import BlockCache
from forebay.cache.eviction import POLICIES, Policy, make_policy
from forebay.cache.pins import Pins
from forebay.cache.prefetch import Prefetch, Wanted
from forebay.cache.tier_set import TierSet
from forebay.tests.support.servers import S3Server, s3_server
from forebay.tiers.local import TierOptions
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.understore import Buffer, UnderStore
from forebay.tiers.version import ObjectVersion

MIB = 1024 * 1024
OBJECT_BYTES = 1024 * MIB
SMALL_BYTES = 110_000
SMALL_OBJECTS = 5_000
BUCKET = "micro-cache"

Read = Callable[[ObjectVersion, int, int], Buffer | None]


def median_us(call: Callable[[], object], *, calls: int = 2_000, rounds: int = 7) -> float:
    """Median over rounds of the mean time of one call, in microseconds."""
    means = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - started) / calls * 1e6)
    return statistics.median(means)


def read_somewhere(read: Read, version: ObjectVersion, size: int, places: Iterator[int]) -> None:
    assert read(version, next(places) if size < version.size else 0, size) is not None


def open_cache(folder: Path, stores: dict[str, UnderStore], *, ram_bytes: int = 0) -> BlockCache:
    pins = Pins.open(folder / "pins")
    ram = TierOptions("ram", Path(tempfile.mkdtemp(dir="/dev/shm")), ram_bytes, 0.0) if ram_bytes else None
    tiers = TierSet.open(ram, [TierOptions("ssd", folder / "ssd", 8192 * MIB, 0.0)], pinned=pins.is_pinned)
    return BlockCache(tiers, stores, pins=pins)


async def overhead(folder: Path) -> None:
    content = random.Random(1).randbytes(64 * MIB)
    async with open_cache(folder, {}, ram_bytes=256 * MIB) as cache:
        assert cache.tiers.ram is not None
        try:
            large = ObjectVersion("s3://b", "large", "e", 64 * MIB)
            small = ObjectVersion("s3://b", "small", "e", SMALL_BYTES)
            cache.tiers.write(large, 0, content, "ram")
            cache.tiers.write(small, 0, content[:SMALL_BYTES], "ram")
            cache.tiers.write(large, 0, content, "ssd")
            cache.tiers.write(small, 0, content[:SMALL_BYTES], "ssd")
            rng = random.Random(2)
            places = itertools.cycle([rng.randrange(large.size // 4096) * 4096 for _ in range(1000)])
            ram, ssd = cache.tiers.ram, cache.tiers.ssd[0]
            print("| read | tier.read | read_cached | over |\n|---|---|---|---|")
            for label, tier_of, version, size in [
                ("RAM, random 4 KiB", ram, large, 4096),
                ("RAM, small object", ram, small, SMALL_BYTES),
                ("SSD (page cache), random 4 KiB", ssd, large, 4096),
                ("SSD (page cache), small object", ssd, small, SMALL_BYTES),
            ]:
                if tier_of is ssd:
                    ram.drop(version)

                alone = median_us(partial(read_somewhere, tier_of.read, version, size, places))
                through = partial(cache.read_cached, reader=7)
                cached = median_us(partial(read_somewhere, through, version, size, places))
                print(f"| {label} | {alone:.1f} us | {cached:.1f} us | {cached - alone:+.1f} us |")
        finally:
            shutil.rmtree(cache.tiers.ram.options.folder)


async def cold(folder: Path, server: S3Server) -> None:
    server.client().create_bucket(Bucket=BUCKET)
    source = folder / "object"
    with source.open("wb") as file:
        for seed in range(OBJECT_BYTES // MIB):
            file.write(random.Random(seed).randbytes(MIB))
    server.client().upload_file(str(source), BUCKET, "large")
    source.unlink()
    plain, through, plain_cpu_s, through_cpu_s = [], [], [], []
    for turn in range(3):
        store, _ = open_store(f"s3://{BUCKET}", StoreOptions(endpoint_url=server.endpoint_url))
        info = await store.head("large")
        assert info is not None
        version = store.version(info)
        started, cpu = time.perf_counter(), time.process_time()
        await fetch_plainly(store, version)
        plain.append(OBJECT_BYTES / (time.perf_counter() - started) / 1e6)
        plain_cpu_s.append(time.process_time() - cpu)
        async with open_cache(folder / str(turn), {store.id: store}) as cache:
            loop = asyncio.get_running_loop()
            started, cpu = time.perf_counter(), time.process_time()
            await asyncio.to_thread(read_through, cache, version, loop)
            through.append(OBJECT_BYTES / (time.perf_counter() - started) / 1e6)
            through_cpu_s.append(time.process_time() - cpu)
        await store.close()
        shutil.rmtree(folder / str(turn))
    ours, theirs = statistics.median(through), statistics.median(plain)
    print(f"cold sequential: cache {ours:.0f} MB/s, 16 ranges of 8 MiB {theirs:.0f} MB/s, ratio {ours / theirs:.2f};")
    gib = OBJECT_BYTES / 2**30
    ours_s, theirs_s = statistics.median(through_cpu_s) / gib, statistics.median(plain_cpu_s) / gib
    print(f"    CPU of the reading process: {ours_s:.2f} s and {theirs_s:.2f} s per GiB")


async def fetch_plainly(store: UnderStore, version: ObjectVersion) -> None:
    ranges = iter(range(0, version.size, 8 * MIB))

    async def fetch_some() -> None:
        for offset in ranges:
            await store.get_range(version, offset, min(8 * MIB, version.size - offset))

    await asyncio.gather(*(fetch_some() for _ in range(16)))


def read_through(cache: BlockCache, version: ObjectVersion, loop: asyncio.AbstractEventLoop) -> None:
    """As the lanes of a mount do: pieces of 1 MiB, four in flight."""
    pieces = iter(range(0, version.size, MIB))
    lock = threading.Lock()

    def lane() -> None:
        while True:
            with lock:
                offset = next(pieces, None)
            if offset is None:
                return
            if cache.read_cached(version, offset, MIB, reader=1) is None:
                asyncio.run_coroutine_threadsafe(cache.read(version, offset, MIB, reader=1), loop).result()

    lanes = [threading.Thread(target=lane) for _ in range(4)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()


async def prefetch(folder: Path, server: S3Server) -> None:
    client = server.client()
    client.create_bucket(Bucket=BUCKET + "-small")
    body = random.Random(1).randbytes(SMALL_BYTES)

    def put(first: int) -> None:
        mine = server.client()
        for number in range(first, SMALL_OBJECTS, 8):
            mine.put_object(Bucket=BUCKET + "-small", Key=f"{number // 1000:03}/{number:06}", Body=body)

    await asyncio.gather(*(asyncio.to_thread(put, first) for first in range(8)))
    ours, theirs = [], []
    for turn in range(3):
        store, _ = open_store(f"s3://{BUCKET}-small", StoreOptions(endpoint_url=server.endpoint_url))
        async with open_cache(folder / str(turn), {store.id: store}) as cache:
            started = time.perf_counter()
            receipt = await Prefetch(cache).run(listed(store))
            ours.append(SMALL_OBJECTS / (time.perf_counter() - started))
            assert receipt.complete, receipt
        await store.close()
        shutil.rmtree(folder / str(turn))
        if s5cmd := shutil.which("s5cmd"):
            started = time.perf_counter()
            command = [s5cmd, "--endpoint-url", server.endpoint_url, "cp", f"s3://{BUCKET}-small/*", f"{folder}/copy/"]
            await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            theirs.append(SMALL_OBJECTS / (time.perf_counter() - started))
            shutil.rmtree(folder / "copy")
    print(f"prefetch of {SMALL_OBJECTS} objects of {SMALL_BYTES} bytes: {statistics.median(ours):.0f} objects/s")
    if theirs:
        print(
            f"s5cmd cp: {statistics.median(theirs):.0f} objects/s, ratio {statistics.median(ours) / statistics.median(theirs):.2f}"
        )


async def listed(store: UnderStore) -> AsyncIterator[Wanted]:
    token = None
    while True:
        page = await store.list_page("", token=token)
        for key, size, etag in zip(page.keys, page.sizes, page.etags, strict=True):
            yield Wanted(key, ObjectVersion(store.id, key, etag, size))
        token = page.next_token
        if token is None:
            return


def each_ns(run: Callable[[], None], count: int) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / count * 1e9


def admit_all(policy: Policy, count: int) -> None:
    for entry in range(count):
        policy.admit(entry, SMALL_BYTES, entry * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF)


def hit_all(policy: Policy, count: int) -> None:
    for entry in range(count):
        policy.hit(entry)


def evict_all(policy: Policy) -> None:
    while (entry := policy.victim()) is not None:
        policy.remove(entry)


def policies() -> None:
    count = 1_000_000
    print("| policy | admit | hit | evict | restart with a million |\n|---|---|---|---|---|")
    for name in POLICIES:
        policy = make_policy(name, count * 200_000)
        times_ns = [
            each_ns(partial(admit_all, policy, count), count),
            each_ns(partial(hit_all, policy, count), count),
            each_ns(partial(evict_all, policy), count),
        ]
        started = time.perf_counter()
        make_policy(name, count * 200_000).admit_many(list(range(count)), [SMALL_BYTES] * count)
        restart_ms = (time.perf_counter() - started) * 1e3
        print(f"| {name} | {times_ns[0]:.0f} ns | {times_ns[1]:.0f} ns | {times_ns[2]:.0f} ns | {restart_ms:.0f} ms |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["overhead", "cold", "prefetch", "policies"])
    what = parser.parse_args().what or ["overhead", "policies", "cold", "prefetch"]
    with tempfile.TemporaryDirectory(prefix="forebay-micro-") as name:
        folder = Path(name)
        if "overhead" in what:
            asyncio.run(overhead(folder / "overhead"))
        if "policies" in what:
            policies()
        if "cold" in what or "prefetch" in what:
            with s3_server(folder / "s3") as server:
                os.environ.update(server.environment)
                if "cold" in what:
                    asyncio.run(cold(folder, server))
                if "prefetch" in what:
                    asyncio.run(prefetch(folder, server))


if __name__ == "__main__":
    main()
