"""The write side on a real S3 server: killed at random moments, and with a network that loses answers."""

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forebay.cache.write.object_metadata import attributes_of
from forebay.cache.write.operations import Attributes
from forebay.cache.write.options import WriteOptions
from forebay.cache.write.records import SqliteRecords
from forebay.cache.write.write_side import WriteSide
from forebay.tests.support.fault_proxy import Fault, fault_proxy
from forebay.tests.support.servers import S3Server
from forebay.tests.support.write_worker import FOLDER, Model, apply, content, open_side
from forebay.tiers.durable import FolderTier
from forebay.tiers.stores import StoreOptions
from forebay.tiers.stores.s3 import S3Store

MIB = 1024 * 1024
KILLS = int(os.environ.get("FOREBAY_KILLS", "8"))


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


def run_and_kill(folder: Path, url: str, bucket: str, seed: int, rng: random.Random) -> tuple[list[list[str]], int]:
    """Let a worker write for a moment and kill it; the operations it began, and how many were acked."""
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
    worker.kill()
    for line in worker.stdout:
        words = line.decode().split()
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
    client = s3.client()
    found: Model = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            key = item["Key"]
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


@pytest.mark.timeout(600)
async def test_what_was_acked_survives_kill_9_and_reaches_the_bucket(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket("killed")
    rng = random.Random(7)
    model: Model = {}
    killed_inside = 0
    for turn in range(KILLS):
        begun, acked = await asyncio.to_thread(run_and_kill, tmp_path, s3.endpoint_url, bucket, turn, rng)
        for words in begun[:acked]:
            model = apply(model, words)
        side = open_side(tmp_path, s3.endpoint_url, bucket)
        recovered = await side.start()
        assert recovered.missing == ()
        found = await everything(side)
        if len(begun) > acked:
            killed_inside += 1
            after = apply(model, begun[acked])
            if found == after:
                model = after
            elif begun[acked][0] in ("write", "append") and (path := begun[acked][1]) not in model and found != model:
                # A new file whose close was not acked may be there, empty or not at all.
                model = {**model, path: found[path]}
        assert brief(found) == brief(model), begun[acked:]
        side.state.validate()
        if turn % 2 or turn == KILLS - 1:
            await side.flush(timeout_s=180)
            await nothing_is_doomed(side)
            assert brief(in_bucket(s3, bucket)) == brief(model)
            assert await side.store.list_uploads("") == []
            nodes = side.state.by_id.values()
            assert set(side.tier.names()) == {n.data for n in nodes if n.data and not n.inline}
        await side.close()
        await side.store.close()
    assert killed_inside, "no kill hit an operation: this proved nothing"


async def test_lost_answers_of_a_real_server_are_found_out(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket("lost")
    with fault_proxy(s3.endpoint_url) as proxy:
        store = S3Store(bucket, StoreOptions(endpoint_url=proxy.url, timeout_s=20.0))
        side = WriteSide(
            tier=FolderTier.at(tmp_path), records=SqliteRecords(tmp_path / "r.db"), store=store,
            options=WriteOptions(writeback_delay_s=0.0, part_bytes=5 * MIB, retry_first_s=0.05),
        )  # fmt: skip
        async with side:
            proxy.script = [
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="POST"),
                Fault.lose_answer(only="PUT"),
            ]
            expected: Model = {"small": content(1, 1000), "large": content(2, 12 * MIB)}
            for name, data in expected.items():
                assert data is not None
                file = side.create(name.encode(), Attributes(0o640, 3, 4))
                file.write(0, data)
                file.release()
            await side.flush(timeout_s=180)
            assert brief(in_bucket(s3, bucket)) == brief(expected)
            assert side.uploads.counts.conflicts == 0
            side.rename(b"large", b"moved")
            side.set_attributes(b"small", mode=0o600)
            proxy.script = [
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="DELETE"),
            ]
            await side.flush(timeout_s=180)
            moved = {"small": expected["small"], "moved": expected["large"]}
            assert brief(in_bucket(s3, bucket)) == brief(moved)
            head = await store.head("small")
            assert head is not None
            assert attributes_of(head.metadata).st_mode == 0o100600
            assert await store.list_uploads("") == []
        await store.close()


async def test_the_real_server_checks_conditions(s3: S3Server, tmp_path: Path) -> None:
    """What `conflict` stands on: a change from outside is detected for small and large files."""
    bucket = s3.new_bucket("conflict")
    store = S3Store(bucket, StoreOptions(endpoint_url=s3.endpoint_url))
    side = WriteSide(
        tier=FolderTier.at(tmp_path), records=SqliteRecords(tmp_path / "r.db"), store=store,
        options=WriteOptions(writeback_delay_s=0.0, part_bytes=5 * MIB),
    )  # fmt: skip
    async with side:
        for name, size in (("small", 1000), ("large", 12 * MIB)):
            file = side.create(name.encode(), Attributes(0o644, 0, 0))
            file.write(0, content(1, size))
            file.release()
        await side.flush(timeout_s=180)
        for name in ("small", "large"):
            s3.client().put_object(Bucket=bucket, Key=name, Body=b"theirs")
            file = side.open(name.encode(), writable=True, truncate=True)
            file.write(0, content(2, 1000 if name == "small" else 12 * MIB))
            file.release()
        await side.flush(timeout_s=180)
        found = in_bucket(s3, bucket)
        assert found.pop("small") == found.pop("large") == b"theirs"
        assert sorted(len(data or b"") for data in found.values()) == [1000, 12 * MIB]
    await store.close()
