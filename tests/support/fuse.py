"""Mounts for tests: served from a thread of their own, so that a test may block in system calls, and always removed."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from forebay.fuse_mount.mount_table import mounted_at
from forebay.fuse_mount.mountpoint import abort, detach
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.parts import Kit
from forebay.fuse_mount.reads import BlockReads
from forebay.fuse_mount.session import Mount, mount, no_facts
from forebay.fuse_mount.transport import READ_ONLY
from forebay.fuse_mount.view import View
from forebay.fuse_mount.xattrs import CacheFacts

from .servers import unavailable

_T = TypeVar("_T")
WAIT_S = 180.0


def need_fuse() -> None:
    """Skip (or fail under CI=true) where real mounts cannot be made."""
    if not os.path.exists("/dev/fuse"):
        unavailable("there is no /dev/fuse")
    if os.geteuid() != 0:
        unavailable("the tests of the mount need root")


def until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Poll a condition; fail with `what` if it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.01)


class ServedMount:
    """A mount that a thread serves; `path` is where."""

    def __init__(self, path: Path, mounted: Mount, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.mount = mounted
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop that serves, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_S)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the loop that serves."""
        self._loop.call_soon_threadsafe(function)


@contextlib.contextmanager
def served(
    view: View,
    cache: BlockReads,
    path: Path,
    options: MountOptions,
    *,
    source: str = "test://source",
    facts: CacheFacts = no_facts,
    kit: Kit = READ_ONLY,
    before: Callable[[], Coroutine[Any, Any, object]] | None = None,
    after: Callable[[], Coroutine[Any, Any, object]] | None = None,
) -> Iterator[ServedMount]:
    """Mount, serve while inside, and unmount. Raises what mounting raises. `before` and `after` run on the same loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-mount")
    thread.start()

    def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(WAIT_S)

    try:
        if before is not None:
            run(before())
        mounted = run(mount(view, cache, path, source=source, options=options, facts=facts, kit=kit))
        try:
            yield ServedMount(path, mounted, loop)
        finally:
            run(mounted.unmount(grace_s=1.0))
            if after is not None:
                run(after())
    finally:
        run(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def clear(path: Path) -> None:
    """Remove whatever is mounted there, whatever state it is in."""
    while (entry := mounted_at(str(path))) is not None:
        abort(entry.device[1])
        detach(path, lazy=True)
