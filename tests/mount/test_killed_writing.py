"""kill -9 of a writing mount at random moments: what it acked is there afterwards, in the view and at last in the bucket.

`FOREBAY_KILLS=100 pytest tests/mount/test_killed_writing.py` kills a hundred times.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forebay.cache.write.nodes import Node, decode
from forebay.cache.write.records import SqliteRecords
from forebay.tests.mount.conftest import Bucket
from forebay.tests.support import file_workload as workload
from forebay.tests.support.command_line import CommandLine, process_is_alive, wait_until

KILLS = int(os.environ.get("FOREBAY_KILLS", "4"))
SEED = int(os.environ.get("FOREBAY_SEED", "1"))
# What a request without an answer may do is waited for four times as long as one may take.
OPTIONS = ("--writeback-delay", "0s", "--io-timeout", "10s")
RECHECK_S = 180.0


def work_and_kill(where: Path, pid: int, seed: int, rng: random.Random) -> tuple[list[workload.Step], int]:
    """Let a workload run for a moment, kill the mount below it; the steps it began, and how many were acked."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "forebay.tests.support.file_workload", str(where), str(seed)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout is not None
    begun: list[workload.Step] = []
    acked = 0
    wanted = rng.randrange(5, 60)
    killed = False
    try:
        for line in worker.stdout:
            words = line.split()
            if words[0] == "+":
                begun.append(words[1:])
                if acked >= wanted and not killed:
                    time.sleep(rng.random() ** 3 * 0.03)  # the moment is what this test is about
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            elif words[0] == "=":
                acked += 1
            elif words[0] == "!":
                assert killed, f"{begun[-1]} failed: {line}"
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    wait_until(lambda: not process_is_alive(pid), f"end of {pid}")
    return begun, acked


def brief(model: workload.Model) -> dict[str, str]:
    """What can be compared and printed."""
    return {
        path: "folder" if data is None else f"{len(data)} bytes {hashlib.md5(data).hexdigest()}"
        for path, data in sorted(model.items())
    }


def in_bucket(bucket: Bucket) -> workload.Model:
    """What somebody sees who has only the bucket."""
    found: workload.Model = {}
    for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        for item in page.get("Contents", []):
            key = item["Key"]
            for depth in range(1, key.rstrip("/").count("/") + 1):
                found["/".join(key.split("/")[:depth])] = None
            if key.endswith("/"):
                found[key.rstrip("/")] = None
            else:
                found[key] = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return found


def nothing_is_leaked(forebay: CommandLine, bucket: Bucket) -> None:
    """After an unmount: no upload is pending, and each data file and inline datum of the write tier belongs to a file."""
    assert bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []) == []
    (home,) = [path.parent for path in forebay.folder.rglob("records.db")]
    records = SqliteRecords(home / "records.db")
    _, found = records.load()
    entries = [decode(record.key, record.body) for record in found if record.body is not None]
    nodes = [entry for entry in entries if isinstance(entry, Node) and entry.data]
    inline = set(records.inline_names())
    records.close()
    assert inline == {node.data for node in nodes if node.inline}
    assert {path.name for path in (home / "data").rglob("*") if path.is_file()} == {
        node.data for node in nodes if not node.inline
    }


@pytest.mark.timeout(300 + 60 * KILLS)
def test_what_was_acked_survives_kill_9_of_the_mount(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.new_mountpoint()
    rng = random.Random(SEED)
    model: workload.Model = {}
    hits = 0
    for turn in range(KILLS):
        pid = int(forebay.json("mount", bucket.url, where, *OPTIONS)["pid"])
        begun, acked = work_and_kill(where, pid, SEED * 1000 + turn, rng)
        for words in begun[:acked]:
            model = workload.apply(model, words)
        pid = int(forebay.json("mount", bucket.url, where, *OPTIONS)["pid"])
        found = workload.read_model(where)
        if len(begun) > acked:
            hits += 1
            interrupted = workload.States(model, begun[acked])
            if interrupted.allow(found):
                model = found
        assert brief(found) == brief(model), f"seed {SEED}, turn {turn}: {begun[acked:]}"
        if turn % 2 or turn == KILLS - 1:
            forebay.ok("flush", where, "--timeout", "3m")
            if brief(in_bucket(bucket)) != brief(model):
                wait_until(
                    lambda: forebay.status(where)["write"]["doomed"] == 0, "a second look at keys", timeout_s=RECHECK_S
                )
            assert brief(in_bucket(bucket)) == brief(model), f"seed {SEED}, turn {turn}"
            forebay.ok("umount", where)
            nothing_is_leaked(forebay, bucket)
        else:
            os.kill(pid, signal.SIGKILL)  # while what the last one left is being uploaded
            wait_until(lambda pid=pid: not process_is_alive(pid), f"end of {pid}")  # type: ignore[misc]
    assert hits, "no kill hit a step: this proved nothing"
