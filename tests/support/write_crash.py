"""Workers of `write_worker` that are killed, and what is found afterwards: in the write side, and in the bucket."""

import asyncio
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forebay.cache.write.write_side import WriteSide

from .servers import S3Server
from .write_worker import FOLDER, Model, apply


def run_and_kill(
    folder: Path, url: str, bucket: str, seed: int, rng: random.Random, *, first: Callable[[], None] = lambda: None
) -> tuple[list[list[str]], int]:
    """Let a worker write for a moment and kill it; the operations it began, and how many were acked.

    `first` is called right before the kill: it may take something worse from it.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "forebay.tests.support.write_worker", str(folder), url, bucket, str(seed)],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    begun: list[list[str]] = []
    acked = 0
    kill_at = time.monotonic() + 1e9
    wanted = rng.randrange(3, 25)
    for line in worker.stdout:
        words = line.decode().split()
        if words[0] == "+":
            begun.append(words[1:])
            if acked >= wanted and kill_at > time.monotonic() + 10:
                kill_at = time.monotonic() + rng.random() * 0.02
        elif words[0] == "=":
            acked += 1
        if time.monotonic() >= kill_at:
            break
    first()
    worker.kill()
    for line in worker.stdout:
        words = line.decode().split()
        if not line.endswith(b"\n"):
            break  # killed while it announced it, before it began
        if words[0] == "+":
            begun.append(words[1:])
        elif words[0] == "=":
            acked += 1
    worker.wait()
    worker.stdout.close()
    return begun, acked


async def everything(side: WriteSide) -> Model:
    found: Model = {}
    for node in list(side.state.by_id.values()):
        path = side.state.path_of(node)
        if path and node.kind == 4:
            found[path.decode()] = FOLDER
        elif path:
            file = side.open(path, writable=False)
            found[path.decode()] = bytes(await side.fetch(file, 0, file.size))
            file.release()
    return found


def brief(model: Model) -> dict[str, str]:
    """What can be compared and printed."""
    return {
        path: "folder" if data is None else f"{len(data)} bytes {hashlib.md5(data).hexdigest()}"
        for path, data in sorted(model.items())
    }


def in_bucket(s3: S3Server, bucket: str) -> Model:
    """What somebody sees who has only the bucket: a folder with something in it needs no marker (and SeaweedFS may have lost it)."""
    client = s3.client()
    found: Model = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            key = item["Key"]
            parts = key.rstrip("/").split("/")
            found.update({"/".join(parts[:depth]): FOLDER for depth in range(1, len(parts))})
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            found[key.rstrip("/")] = FOLDER if key.endswith("/") else body
    return found


async def nothing_is_doomed(side: WriteSide) -> None:
    """Wait until uploads whose outcome a kill has hidden were looked at once more; `flush` does not."""
    async with asyncio.timeout(180):
        while True:
            if not side.state.doomed:
                return
            await asyncio.sleep(0.05)


def after_kill(model: Model, found: Model, begun: list[list[str]], acked: int) -> Model:
    """What must be there: all that was acked, and the operation that was cut off wholly or not at all.

    Of a new file whose close was not acked there may be a part, or the name alone. Fails if `found` is anything else.
    """
    for words in begun[:acked]:
        model = apply(model, words)
    if len(begun) > acked:
        last = begun[acked]
        after = apply(model, last)
        if found == after:
            model = after
        elif last[0] in ("write", "append") and last[1] not in model and last[1] in found:
            model = {**model, last[1]: found[last[1]]}
    assert brief(found) == brief(model), begun[acked:]
    return model
