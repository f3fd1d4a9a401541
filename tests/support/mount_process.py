"""A mount in a process of its own, for tests that kill it: python -m ... MOUNTPOINT TRANSPORT GRACE_S

Serves `file` (4 MiB of one pseudo-random stream), and `hanging`, whose reads never end. Prints "ready" when it serves.
"""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import mount
from forebay.tests.support.static_view import MemoryCache, StaticView
from forebay.tiers.understore import Buffer
from forebay.tiers.version import ObjectVersion

CONTENT = random.Random(11).randbytes(4 * 1024 * 1024)


class _HangingCache(MemoryCache):
    """Reads of objects of one byte length never end; others are answered at once."""

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int) -> Buffer | None:
        return None if version.size == 1000 else super().read_cached(version, offset, size, reader=reader)

    async def read(self, version: ObjectVersion, offset: int, size: int, **choices: Any) -> Buffer:
        await asyncio.Event().wait()
        raise AssertionError


async def _serve(mountpoint: str, transport: str, grace_s: float) -> None:
    view = StaticView({b"file": CONTENT, b"hanging": bytes(1000), b"folder/name": b"1"})
    options = MountOptions(transport=cast(Any, transport))
    asked: asyncio.Queue[None] = asyncio.Queue()
    for which in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(which, asked.put_nowait, None)
    mounted = await mount(view, _HangingCache(view), mountpoint, source="test://process", options=options)
    print("ready", flush=True)
    await _first(mounted.wait_unmounted(), asked.get())
    if not await _first(leaving := asyncio.ensure_future(mounted.unmount(grace_s=grace_s)), asked.get()):
        await mounted.abort()
        await leaving


async def _first(one: Awaitable[None], other: Awaitable[None]) -> bool:
    """Wait for either; whether it was the first. The second is given up then."""
    first, second = asyncio.ensure_future(one), asyncio.ensure_future(other)
    await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    if first.done():
        second.cancel()
    return first.done()


@contextmanager
def mount_process(mountpoint: Path, transport: str, *, grace_s: float = 5.0) -> Iterator[subprocess.Popen[str]]:
    """Start it and wait until it serves; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "forebay.tests.support.mount_process", str(mountpoint), transport, str(grace_s)],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line != "ready\n":
            raise RuntimeError(f"the mount did not come up: exit {process.wait()}")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], float(sys.argv[3])))
