"""Building a tree index in a process of its own, so that what building needs (Arrow, sorting) is not the mount's heap after.

`python -m forebay.daemon.tree_build` reads one request as JSON from stdin (the URL of the metadata store may hold
a password, so it goes neither into argv nor the environment), and answers in JSON lines on stdout: `{"done": N}` as it goes
on, at last `{"built": true}` or `{"error": {...}}`. It ends by itself when whoever asked has gone.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa

from ..client.control import error_document, error_from
from ..errors import ForebayError, SnapshotError
from ..lean_process import leave_out_pandas
from ..snapshots import open_meta
from ..snapshots.reader import PageReader
from ..snapshots.tree_index import Layout
from ..snapshots.tree_index_store import OpenIndex, TreeIndexStore
from . import priority

REPORT_INTERVAL_S: Final = 0.2


class TreeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to build: the entries below page `root` (hex) of a commit (hex), into the index folder `trees`."""

    meta_url: str | None
    trees: str
    commit: str
    root: str
    commit_time_ns: int
    label_key: str | None = None


async def open_tree(request: TreeRequest, progress: Callable[[int], None] | None = None) -> OpenIndex:
    """The index, built by a child process if it is not there. `progress` gets the number of entries done.

    Raises what building raised. Cancelled, it ends the child first.
    """
    store = TreeIndexStore(Path(request.trees))
    layout = Layout(request.label_key)
    found = await asyncio.to_thread(store.open, request.commit, layout)
    if found is None:
        await _build_in_child(request, progress)
        found = await asyncio.to_thread(store.open, request.commit, layout)
    if found is None:
        raise SnapshotError(f"the tree index in {request.trees} is not whole just after it was built; check the disk")
    return found


async def _build_in_child(request: TreeRequest, progress: Callable[[int], None] | None) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(msgspec.json.encode(request) + b"\n")
        # stdin stays open: its end tells the child that we are gone.
        with contextlib.suppress(ConnectionError):
            await child.stdin.drain()
        last: dict[str, Any] = {}
        async for line in child.stdout:
            last = json.loads(line)
            if progress is not None and "done" in last:
                progress(last["done"])
        code = await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        child.stdin.close()
    if "error" in last:
        raise error_from(last["error"])
    if not last.get("built"):
        raise SnapshotError(
            f"building the tree index ended with exit code {code}", remedy="see the log for its last words"
        )


def main() -> int:
    """The child."""
    leave_out_pandas()
    priority.step_back()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=TreeRequest)
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    try:
        _build(request)
    except ForebayError as error:
        _say({"error": error_document(error)})
        return error.exit_code
    _say({"built": True})
    return 0


def _build(request: TreeRequest) -> None:
    meta = open_meta(request.meta_url)
    shown_s = 0.0

    def report(done: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s >= REPORT_INTERVAL_S:
            shown_s = now_s
            _say({"done": done})

    def entries() -> Iterator[pa.RecordBatch]:
        return PageReader(meta).batches(bytes.fromhex(request.root))

    try:
        store = TreeIndexStore(Path(request.trees))
        store.prune()
        store.ensure(
            request.commit,
            Layout(request.label_key),
            entries,
            commit_time_ns=request.commit_time_ns,
            progress=report,
        ).close()
    finally:
        meta.close()


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by a waiting thread, makes the interpreter abort at its end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
