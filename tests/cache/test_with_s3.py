"""The read side on a real S3 server: what its own fake cannot tell."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.cache.prefetch import Prefetch, Wanted
from forebay.errors import ObjectChanged
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.support.fake_store import content_of
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.understore import UnderStore


@pytest.fixture
async def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[UnderStore]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store, _ = open_store(f"s3://{s3.new_bucket('cache')}", StoreOptions(endpoint_url=s3.endpoint_url))
    yield store
    await store.close()


async def listed(store: UnderStore, prefix: str) -> AsyncIterator[Wanted]:
    token = None
    while True:
        page = await store.list_page(prefix, token=token, limit=100)
        for key in page.keys:
            info = await store.head(key)
            assert info is not None
            yield Wanted(key, store.version(info))
        token = page.next_token
        if token is None:
            return


async def test_reads_in_every_order(tmp_path: Path, store: UnderStore) -> None:
    data = content_of(1, 24 * MIB + 999)
    version = store.version(await store.put("large", data))
    rng = random.Random(1)
    async with cache_on(tmp_path, store, ram_bytes=16 * MIB) as cache:
        ranges = [(offset, 128 * 1024) for offset in range(0, len(data), 128 * 1024)]
        ranges += [(rng.randrange(len(data)), 4096) for _ in range(50)]
        rng.shuffle(ranges)

        async def read(reader: int) -> None:
            for offset, size in ranges[reader::4]:
                got = cache.read_cached(version, offset, size, reader=reader + 1)
                if got is None:
                    got = await cache.read(version, offset, size, reader=reader + 1)
                assert got == data[offset : offset + size]

        await asyncio.gather(*(read(reader) for reader in range(4)))
        await settled(cache)
        assert cache.stats().fetched_bytes == len(data)


async def test_an_object_that_is_replaced(tmp_path: Path, store: UnderStore) -> None:
    old = store.version(await store.put("k", b"a" * (5 * MIB)))
    async with cache_on(tmp_path, store) as cache:
        assert await cache.read(old, 0, 10) == b"a" * 10
        await settled(cache)
        new = store.version(await store.put("k", b"b" * (5 * MIB)))
        with pytest.raises(ObjectChanged, match="k"):
            await cache.read(old, 4 * MIB, 10)
        assert cache.read_cached(old, 0, 10) == b"a" * 10
        assert await cache.read(new, 4 * MIB, 10) == b"b" * 10


async def test_prefetch_of_a_prefix(tmp_path: Path, store: UnderStore) -> None:
    sizes = {f"p/{n:03}": 1000 * n for n in range(120)} | {"p/large": 20 * MIB}
    for number, (key, size) in enumerate(sizes.items()):
        await store.put(key, content_of(number, size))
    async with cache_on(tmp_path, store) as cache:
        receipt = await Prefetch(cache, lease_s=60.0, owner="test").run(listed(store, "p/"))
        assert receipt.complete, receipt
        assert (receipt.present_objects, receipt.present_bytes) == (121, sum(sizes.values()))
        assert receipt.requests == 119 + 3
        again = await Prefetch(cache).run(listed(store, "p/"))
        assert (again.complete, again.requests) == (True, 0)
