"""Whatever happens to objects, tiers and the store: bytes that are served are those of the version asked for.

A random history of reads in any order, of objects replaced, deleted and brought back, of an under store that fails
and recovers, of evictions (the tiers are small), corrupt cache files, dropped versions and restarts, against the
plain truth: what each version held when it was made.
"""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.cache.block_cache import BlockCache
from forebay.cache.options import CacheOptions
from forebay.cache.prefetch import Prefetch, Wanted
from forebay.errors import ObjectChanged, ObjectNotFound, StoreUnavailable
from forebay.tests.cache.lab import MIB, cache_on
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tiers.version import ObjectVersion

KEYS = 6
SIZES = [0, 1, 4096, 200_000, MIB, MIB + 1, 5 * MIB + 77, 9 * MIB]

step = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 2**32), st.integers(0, 5)),
    st.tuples(st.just("read"), st.integers(0, 2**32), st.integers(0, 5)),
    st.tuples(st.just("scan"), st.integers(0, 2**32), st.integers(1, 5)),
    st.tuples(st.sampled_from(["replace", "delete", "down", "up", "flip", "drop", "prefetch", "restart"]),
              st.integers(0, 2**32), st.integers(0, 5)),
)  # fmt: skip


class History:
    """One history: the store, the truth about every version that ever was, and the cache under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FakeStore()
        self.truth: dict[ObjectVersion, bytes] = {}
        self.made = 0
        for number in range(KEYS):
            self.replace(number)

    def replace(self, number: int) -> None:
        self.made += 1
        data = content_of(self.made, SIZES[(self.made + number) % len(SIZES)])
        self.truth[self.store.add(f"key-{number % KEYS}", data)] = data

    async def run(self, steps: list[tuple[str, int, int]]) -> None:
        while steps:
            async with cache_on(
                self.folder,
                self.store,
                ram_bytes=16 * MIB,
                ssd_bytes=(16 * MIB, 16 * MIB),
                options=CacheOptions(max_inflight_bytes=10 * MIB, timeout_s=30.0),
                validated=False,
            ) as cache:
                while steps:
                    name, seed, reader = steps.pop(0)
                    if name == "restart":
                        break
                    await self.step(cache, name, random.Random(seed), reader)

    async def step(self, cache: BlockCache, name: str, rng: random.Random, reader: int) -> None:
        version = rng.choice(list(self.truth))
        if name == "replace":
            self.replace(rng.randrange(KEYS))
        elif name == "delete":
            await self.store.delete(version.key)
        elif name == "down":
            self.store.down = StoreUnavailable("down")
        elif name == "up":
            self.store.down = None
        elif name == "drop":
            cache.tiers.drop(version)
        elif name == "flip":
            self.flip_a_bit(rng)
        elif name == "prefetch":
            await self.prefetch(cache, version)
        elif name == "scan":
            await self.scan(cache, version, reader)
        else:
            offset = rng.randrange(version.size + 1)
            ranges = [(offset, rng.choice([1, 4096, 131_072, MIB, 12 * MIB])) for _ in range(3)]
            await asyncio.gather(*(self.read(cache, version, offset, size, reader) for offset, size in ranges))

    async def read(self, cache: BlockCache, version: ObjectVersion, offset: int, size: int, reader: int) -> bool:
        """Read as a mount does. Right bytes, or an error that is true."""
        expected = self.truth[version][offset : offset + size]
        data = await asyncio.to_thread(cache.read_cached, version, offset, size, reader=reader)
        if data is not None:
            assert data == expected
            return True
        try:
            assert await cache.read(version, offset, size, reader=reader) == expected
        except StoreUnavailable:
            assert self.store.down is not None
        except ObjectNotFound:
            assert version.key not in self.store.objects
        except ObjectChanged:
            assert self.store.objects[version.key] != self.truth[version]
        else:
            return True
        return False

    async def scan(self, cache: BlockCache, version: ObjectVersion, reader: int) -> None:
        for offset in range(0, version.size, 131_072):
            if not await self.read(cache, version, offset, 131_072, reader):
                return

    async def prefetch(self, cache: BlockCache, version: ObjectVersion) -> None:
        async def one() -> AsyncIterator[Wanted]:
            yield Wanted(version.key, version)

        receipt = await Prefetch(cache, to="ssd").run(one())
        assert receipt.present_bytes in (0, version.size)
        if receipt.complete and version.size:
            down, self.store.down = self.store.down, StoreUnavailable("down")
            assert await cache.read(version, 0, version.size) == self.truth[version]
            self.store.down = down

    def flip_a_bit(self, rng: random.Random) -> None:
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size > 64]
        files = [path for path in files if "ram" in str(path) or "ssd" in str(path)]
        if not files:
            return
        path = rng.choice(sorted(files))
        with path.open("r+b") as file:
            place = rng.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))


@given(steps=st.lists(step, min_size=5, max_size=40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_served_bytes_are_those_of_the_version(steps: list[tuple[str, int, int]]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="forebay-truth-"))
    try:
        asyncio.run(History(folder).run(list(steps)))
    finally:
        shutil.rmtree(folder)
