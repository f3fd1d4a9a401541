"""A mount in a process of its own, for tests that kill it: python -m ... MOUNTPOINT TRANSPORT GRACE_S

Serves `file` (4 MiB of one pseudo-random stream), and `hanging`, whose reads never end. Prints "ready" when it serves.
"""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import mount, termination_signals
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
    cache = _HangingCache(view)
    async with (
        termination_signals() as asked,
        await mount(view, cache, mountpoint, source="test://process", options=options) as mounted,
    ):
        print("ready", flush=True)
        await mounted.serve(asked, grace_s=grace_s)


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
