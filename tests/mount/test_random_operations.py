"""Random operations on a writable mount and on a local folder: the same answers, and the same state, whatever happens below.

Uploads go on meanwhile, uploaded data is given up, the mount is left and entered again, and killed; in the end the bucket holds what
the local folder holds.

    FOREBAY_SEED=7 FOREBAY_SEEDS=20 FOREBAY_OPERATIONS=5000 pytest tests/mount/test_random_operations.py
"""

import os
import random
import signal
import stat
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content
from forebay.tests.support.command_line import CommandLine, process_is_alive, wait_until
from forebay.tests.support.folder_twins import Chooser, Folder, Twins, walk

SEED = int(os.environ.get("FOREBAY_SEED", "1"))
SEEDS = int(os.environ.get("FOREBAY_SEEDS", "1"))
OPERATIONS = int(os.environ.get("FOREBAY_OPERATIONS", "400"))
BETWEEN_MOUNTS = 130
BETWEEN_LOOKS = 40
MIB = 1024 * 1024
# What the bucket holds before the mount: changed in part, moved and removed by it.
BEFORE = {"a": 10, "b": 40_000, "x/a": 6 * MIB, "x/b": 0, "x/y/c": 9_000_000, "x/y/d": 100, "y/a": 33_000}
FLAGS = (
    "--free-space-ratio",
    "0.01",
    "--writeback-delay",
    "0s",
    "--max-dirty-age",
    "1s",
    "--max-dirty-size",
    "96MiB",
    "--write-cache-size",
    "6MiB",
)
# A publish of unknown outcome is looked at again after this long, and only then is its key surely what it should be.
RECHECK_S = 180.0


def in_bucket(bucket: Bucket) -> dict[bytes, bytes]:
    """Objects by key."""
    found: dict[bytes, bytes] = {}
    for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        for item in page.get("Contents", []):
            body = bucket.client.get_object(Bucket=bucket.name, Key=item["Key"])["Body"]
            found[os.fsencode(item["Key"])] = body.read()
    return found


def as_objects(folder: Folder) -> dict[bytes, bytes]:
    """What a bucket holds of a folder: files, the targets of links, and markers of the folders with nothing in them."""
    found: dict[bytes, bytes] = {}
    for path in walk(folder):
        mode = os.lstat(folder.path(path)).st_mode
        if stat.S_ISLNK(mode):
            found[path] = folder.readlink(path)
        elif stat.S_ISREG(mode):
            found[path] = Path(os.fsdecode(folder.path(path))).read_bytes()
        elif not folder.names(path):
            found[path + b"/"] = b""
    return found


def without_markers(objects: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Folders with something in them may have a marker or none."""
    return {
        key: data
        for key, data in objects.items()
        if not key.endswith(b"/") or not any(other != key and other.startswith(key) for other in objects)
    }


def difference(expected: dict[bytes, bytes], found: dict[bytes, bytes]) -> list[str]:
    keys = sorted(expected.keys() | found.keys())
    return [
        f"{key!r}: {_size(found.get(key))} in the bucket, {_size(expected.get(key))} in the local folder"
        for key in keys
        if found.get(key) != expected.get(key)
    ]


def _size(data: bytes | None) -> str:
    return "nothing" if data is None else f"{len(data)} bytes"


class Ride:
    """A mount beside its twin, left and entered again."""

    def __init__(self, forebay: CommandLine, bucket: Bucket, local: Path, seed: int) -> None:
        self._forebay = forebay
        self._bucket = bucket
        self._where = forebay.new_mountpoint()
        local.mkdir()
        self.twins = Twins(self._where, local)
        self._rng = random.Random(seed)
        self._chooser = Chooser(self._rng, self.twins)
        self._pid = 0
        self.older_states: list[str] = []

    def mount(self) -> None:
        self._pid = int(self._forebay.json("mount", self._bucket.url, self._where, *FLAGS)["pid"])

    def operate(self, count: int) -> None:
        for number in range(count):
            self.twins.do(self._chooser.choose())
            if number % BETWEEN_LOOKS == 0:
                self.twins.compare()
        self.twins.compare()

    def leave_and_return(self) -> None:
        """Unmount or be killed, and mount again."""
        way = self._rng.choice(["umount", "flush", "kill", "kill", "kill synced"])
        self.twins.history.append(f"--- {way}")
        if way == "kill synced":
            self.twins.sync_all()
        elif not way.startswith("kill"):
            self.twins.close_all()
            self._forebay.ok("umount", *(["--flush"] if way == "flush" else []), self._where)
        if way.startswith("kill"):
            os.kill(self._pid, signal.SIGKILL)
            wait_until(lambda: not process_is_alive(self._pid), f"end of {self._pid}")
            self.twins.mount.close_all()
            self.twins.local.close_all()
        self.mount()
        self.older_states += self.twins.settle()
        self.twins.compare()

    def _is_ghost(self, path: bytes) -> bool:
        """A folder without anything, that only the server shows: SeaweedFS keeps one for minutes after the last key below it went."""
        keys = in_bucket(self._bucket)
        return os.path.isdir(self.twins.mount.path(path)) and not any(key.startswith(path + b"/") for key in keys)

    def finish(self) -> None:
        """Flush, and compare the bucket itself."""
        self.twins.close_all()
        self._forebay.ok("flush", self._where, "--timeout", "5m")
        self.twins.compare(self._is_ghost)
        expected = as_objects(self.twins.local)
        if difference(expected, without_markers(in_bucket(self._bucket))):
            wait_until(
                lambda: self._forebay.status(self._where)["write"]["doomed"] == 0,
                "a second look at keys",
                timeout_s=RECHECK_S,
            )
        found = without_markers(in_bucket(self._bucket))
        assert not difference(expected, found), "\n".join(difference(expected, found))
        assert self._bucket.client.list_multipart_uploads(Bucket=self._bucket.name).get("Uploads", []) == []
        assert self._forebay.status(self._where)["write"]["failures"] == []


@pytest.mark.timeout(300 + OPERATIONS)
@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_a_mount_does_what_a_local_folder_does(forebay: CommandLine, bucket: Bucket, tmp_path: Path, seed: int) -> None:
    ride = Ride(forebay, bucket, tmp_path / "local", seed)
    for index, (key, size) in enumerate(BEFORE.items()):
        data = content(index, size)
        bucket.put(key, data)
        path = tmp_path / "local" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        ride.mount()
        ride.twins.compare()
        for start in range(0, OPERATIONS, BETWEEN_MOUNTS):
            if start:
                ride.leave_and_return()
            ride.operate(min(BETWEEN_MOUNTS, OPERATIONS - start))
        ride.finish()
    except BaseException:
        history = tmp_path / "history"
        history.write_text("\n".join(ride.twins.history))
        print(f"seed {seed}, the last of {len(ride.twins.history)} operations (all in {history}):")
        print("\n".join(ride.twins.history[-60:]))
        listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
        print("in the bucket:", [item["Key"] for item in listed])
        raise
    finally:
        ride.twins.mount.close_all()
        ride.twins.local.close_all()
