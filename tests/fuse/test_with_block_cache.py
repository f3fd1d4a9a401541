"""The mount on the real block cache and real tiers, with a store that fails by script."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from forebay.cache.block_cache import BlockCache
from forebay.errors import ObjectChanged, StoreUnavailable
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import Mount, mount
from forebay.fuse_mount.xattrs import cache_facts
from forebay.tests.cache.lab import MIB, cache_on, settled
from forebay.tests.fuse.conftest import Transport
from forebay.tests.support.fake_store import FakeStore, content_of
from forebay.tests.support.static_view import StaticView
from forebay.tiers.version import ObjectVersion

_T = TypeVar("_T")
SIZES = {"small": 110_000, "one-block": 4 * MIB, "large": 9 * MIB + 17, "empty": 0}


class StoreView(StaticView):
    """The objects of a fake store as files of the root."""

    def __init__(self, store: FakeStore) -> None:
        self.versions: dict[int, ObjectVersion] = {}
        super().__init__()
        for name, size in SIZES.items():
            content = content_of(len(name), size)
            self.versions[self.add(name.encode(), content)] = store.add(f"prefix/{name}", content)

    def version(self, ino: int) -> ObjectVersion:
        return self.versions[ino]


@asynccontextmanager
async def mounted_cache(
    tmp_path: Path, mountpoint: Path, transport: Transport, store: FakeStore
) -> AsyncIterator[tuple[Mount, BlockCache]]:
    view = StoreView(store)
    options = MountOptions(transport=transport, io_timeout_s=20.0)
    async with cache_on(tmp_path / "cache", store, ram_bytes=16 * MIB) as cache:
        mounting = mount(view, cache, mountpoint, source="test://store", options=options, facts=cache_facts(cache))
        async with await mounting as mounted:
            yield mounted, cache


async def in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """The files of the mount are read beside the loop that serves them."""
    return await asyncio.wait_for(asyncio.to_thread(function, *arguments), 60)


def xattrs_of(path: Path) -> dict[str, bytes]:
    names = ("key", "cached", "tier", "pinned")
    return {name: os.getxattr(path, f"user.forebay.{name}") for name in names}


async def test_cold_and_warm_reads_are_the_truth(tmp_path: Path, mountpoint: Path, transport: Transport) -> None:
    store = FakeStore()
    async with mounted_cache(tmp_path, mountpoint, transport, store) as (_, cache):
        for _ in range(2):
            for name, size in SIZES.items():
                assert await in_thread((mountpoint / name).read_bytes) == content_of(len(name), size)
        await settled(cache)
        assert store.fetched_bytes == sum(SIZES.values())
    # Again on a fresh mount: all from the tiers.
    async with mounted_cache(tmp_path, mountpoint, transport, store):
        for name, size in SIZES.items():
            assert await in_thread((mountpoint / name).read_bytes) == content_of(len(name), size)
        xattrs = await in_thread(xattrs_of, mountpoint / "large")
        assert xattrs["cached"] == b"1.000"
        assert xattrs["tier"] in (b"ssd", b"ram", b"ram+ssd")
        assert xattrs["pinned"] == b"no"
        assert xattrs["key"] == b"prefix/large"
    assert store.fetched_bytes == sum(SIZES.values())


async def test_random_readers_at_once(tmp_path: Path, mountpoint: Path, transport: Transport) -> None:
    truth = content_of(len("large"), SIZES["large"])

    def reader(seed: int) -> None:
        rng = random.Random(seed)
        descriptor = os.open(mountpoint / "large", os.O_RDONLY)
        try:
            for _ in range(60):
                offset, size = rng.randrange(len(truth)), rng.choice([100, 4096, 300_000])
                assert os.pread(descriptor, size, offset) == truth[offset : offset + size]
        finally:
            os.close(descriptor)

    async with mounted_cache(tmp_path, mountpoint, transport, FakeStore(delay_s=0.001)):
        await asyncio.gather(*(in_thread(reader, seed) for seed in range(8)))


async def test_an_outage_is_an_error_and_what_is_cached_is_still_served(
    tmp_path: Path, mountpoint: Path, transport: Transport
) -> None:
    store = FakeStore()
    async with mounted_cache(tmp_path, mountpoint, transport, store) as (mounted, cache):
        assert len(await in_thread((mountpoint / "small").read_bytes)) == SIZES["small"]
        await settled(cache)
        store.down = StoreUnavailable("the store is away")
        with pytest.raises(OSError, match="Input/output error"):
            await in_thread((mountpoint / "one-block").read_bytes)
        assert len(await in_thread((mountpoint / "small").read_bytes)) == SIZES["small"]
        assert mounted.status().errors["store_unavailable"] > 0
        store.down = None
        assert await in_thread((mountpoint / "one-block").read_bytes) == content_of(9, SIZES["one-block"])
        store.down = ObjectChanged("prefix/large was overwritten")
        with pytest.raises(OSError) as caught:
            await in_thread((mountpoint / "large").read_bytes)
        assert caught.value.errno == errno.ESTALE
