"""A deletion takes away what it was sent for, and nothing else: however late it arrives, and whatever the store does inside."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.write.nodes import EMPTY
from forebay.tests.support.folder_bucket import FolderBucket
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import Lab
from forebay.tiers.understore import ObjectInfo

RECHECK_S = 1000.0


async def begin(folder: Path, bucket: MultipartBucket) -> Lab:
    return await Lab.start(folder, bucket, recheck_s=RECHECK_S)


def let_time_pass(lab: Lab) -> None:
    """From now on nothing can arrive any more."""
    lab.side.deletions._ages.clock = lambda: time.monotonic() + 2 * RECHECK_S


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


def late_once(bucket: MultipartBucket) -> None:
    """The next deletion has no answer, and arrives late."""

    def fault(kind: str, key: str) -> Fault | None:
        if kind != "delete":
            return None
        bucket.fault = lambda kind, key: None
        return Fault.LATE

    bucket.fault = fault


async def a_while(lab: Lab) -> None:
    """Long enough for everything that may be uploaded."""
    for _ in range(2):
        await lab.side.writeback.changed()


async def make_and_remove(lab: Lab, name: bytes, *, is_folder: bool) -> None:
    make_anew(lab, name, is_folder=is_folder)
    await lab.side.flush(timeout_s=60)
    late_once(lab.bucket)
    lab.rmdir(name) if is_folder else lab.unlink(name)
    await until(lambda: lab.bucket.under_way)


def make_anew(lab: Lab, name: bytes, *, is_folder: bool) -> None:
    lab.mkdir(name) if is_folder else lab.write(name, b"the same content, and so the same etag")


async def arrives_late(lab: Lab, name: bytes) -> None:
    """The deletion arrives when the name would be in the bucket again if nothing held it back; it must be there at last."""
    await a_while(lab)
    lab.bucket.arrive()
    let_time_pass(lab)
    await lab.side.flush(timeout_s=60)
    await until(lambda: not lab.side.state.doomed)
    assert [key.rstrip("/") for key in lab.bucket.objects] == [name.decode()]
    assert await lab.tree() == lab.bucket_tree()


@pytest.mark.parametrize("is_folder", [True, False])
async def test_a_deletion_that_arrives_late_does_not_take_what_was_made_anew(tmp_path: Path, is_folder: bool) -> None:
    lab = await begin(tmp_path, MultipartBucket())
    await make_and_remove(lab, b"x", is_folder=is_folder)
    make_anew(lab, b"x", is_folder=is_folder)
    await arrives_late(lab, b"x")
    await lab.end()


@pytest.mark.parametrize("is_folder", [True, False])
async def test_nor_when_it_was_sent_again_and_answered(tmp_path: Path, is_folder: bool) -> None:
    lab = await begin(tmp_path, MultipartBucket())
    await make_and_remove(lab, b"x", is_folder=is_folder)
    await until(lambda: not lab.bucket.objects)
    await lab.side.flush(timeout_s=60)  # which does not wait for what may still arrive
    make_anew(lab, b"x", is_folder=is_folder)
    await arrives_late(lab, b"x")
    await lab.end()


@pytest.mark.parametrize("is_folder", [True, False])
async def test_nor_when_the_store_sent_it_twice(tmp_path: Path, is_folder: bool) -> None:
    bucket = MultipartBucket()
    lab = await begin(tmp_path, bucket)
    make_anew(lab, b"x", is_folder=is_folder)
    await lab.side.flush(timeout_s=60)
    bucket.tried_twice.update(("x", "x/"))
    lab.rmdir(b"x") if is_folder else lab.unlink(b"x")
    await lab.side.flush(timeout_s=60)
    assert bucket.objects == {}
    bucket.tried_twice.clear()
    make_anew(lab, b"x", is_folder=is_folder)
    await arrives_late(lab, b"x")
    await lab.end()


@pytest.mark.parametrize("is_folder", [True, False])
async def test_nor_when_the_process_that_sent_it_was_killed(tmp_path: Path, is_folder: bool) -> None:
    lab = await begin(tmp_path, MultipartBucket())
    await make_and_remove(lab, b"x", is_folder=is_folder)
    await lab.crash()
    lab = await begin(tmp_path, lab.bucket)
    make_anew(lab, b"x", is_folder=is_folder)
    await arrives_late(lab, b"x")
    await lab.end()


async def test_what_is_in_a_folder_waits_for_a_late_deletion_of_its_marker(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, FolderBucket())
    await make_and_remove(lab, b"x", is_folder=True)
    await until(lambda: not lab.bucket.objects)
    lab.mkdir(b"x")
    lab.write(b"x/f", b"acked")
    await a_while(lab)
    for key in [key for key in lab.bucket.objects if key.startswith("x/")]:
        del lab.bucket.objects[key]  # what such a store does when it arrives
    let_time_pass(lab)
    await lab.side.flush(timeout_s=60)
    assert lab.bucket_tree() == {b"x": "<folder>", b"x/f": b"acked"}
    await lab.end()


async def test_a_marker_that_was_overwritten_by_the_first_key_below_it_is_sent_once_more(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, MultipartBucket())
    lab.mkdir(b"x")
    lab.mkdir(b"x/y")
    lab.write(b"x/y/f", b"1")
    await lab.side.flush(timeout_s=60)
    del lab.bucket.objects["x/"], lab.bucket.objects["x/y/"]
    lab.unlink(b"x/y/f")
    await lab.side.flush(timeout_s=60)
    assert lab.bucket.contents() == {"x/y/": b""}
    lab.rmdir(b"x/y")
    await lab.side.flush(timeout_s=60)
    assert lab.bucket.contents() == {"x/": b""}
    await lab.end()


async def test_a_folder_removed_while_its_marker_was_put_stays_hidden(tmp_path: Path) -> None:
    """Its marker may have another etag by then; that is no reason to show what is still to be deleted in it."""
    bucket = SlowPuts()
    bucket.may_go.set()
    lab = await Lab.start(tmp_path, bucket)
    lab.mkdir(b"x")
    lab.write(b"x/f", b"1")
    await lab.side.flush(timeout_s=60)
    bucket.may_go.clear()
    begun = bucket.calls["begun"]
    lab.side.set_attributes(b"x", mode=0o700)
    await until(lambda: bucket.calls["begun"] > begun)
    reader = lab.side.open(b"x/f", writable=False)  # so that its object stays for now
    lab.unlink(b"x/f")
    lab.rmdir(b"x")
    bucket.fault = lambda kind, key: Fault.HOLD if kind == "delete" else None
    bucket.may_go.set()
    await until(lambda: not lab.side.state.attempts)
    assert lab.side.state.doomed[b"x/"].etag == EMPTY
    await a_while(lab)
    assert await lab.tree() == {}
    bucket.released.set()
    reader.release()
    await lab.side.flush(timeout_s=60)
    assert bucket.objects == {}
    await lab.end()


class SlowPuts(MultipartBucket):
    """Puts wait until `may_go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = asyncio.Event()

    async def put(self, *args: Any, **kwargs: Any) -> ObjectInfo:
        self.calls["begun"] += 1
        await self.may_go.wait()
        return await super().put(*args, **kwargs)


async def test_a_marker_is_not_deleted_while_something_is_put_into_its_folder(tmp_path: Path) -> None:
    bucket = SlowPuts()
    bucket.may_go.set()
    lab = await Lab.start(tmp_path, bucket)
    lab.mkdir(b"x")
    await lab.side.flush(timeout_s=60)
    bucket.may_go.clear()
    bucket.fault = lambda kind, key: Fault.HOLD if kind == "head" else None
    looks = bucket.calls["head"]
    lab.rmdir(b"x")
    await until(lambda: bucket.calls["head"] > looks)  # the deletion has begun
    lab.mkdir(b"x")
    lab.write(b"x/f", b"acked")
    await until(lambda: bucket.calls["begun"] == 2)
    bucket.released.set()
    await a_while(lab)
    assert bucket.calls["delete"] == 0
    bucket.may_go.set()
    await lab.side.flush(timeout_s=60)
    assert bucket.contents() == {"x/": b"", "x/f": b"acked"}
    await lab.end()


async def test_nothing_is_published_in_a_folder_whose_marker_is_being_deleted(tmp_path: Path) -> None:
    """Folders are emptied and filled under the same names, again and again; a file that is put at the wrong moment would be lost."""
    lab = await Lab.start(tmp_path, FolderBucket(), recheck_s=0.0)
    expected: dict[bytes, bytes | str] = {}
    for turn in range(12):
        lab.mkdir(b"x")
        lab.write(b"x/f%d" % turn, b"%d" % turn)
        for _ in range(turn % 5):
            await asyncio.sleep(0.002)
        lab.rename(b"x", b"moved%d" % turn)
        lab.mkdir(b"x")
        lab.write(b"x/g", b"%d" % turn)
        for _ in range(turn % 7):
            await asyncio.sleep(0.002)
        lab.unlink(b"x/g")
        lab.rmdir(b"x")
        expected.update({b"moved%d" % turn: "<folder>", b"moved%d/f%d" % (turn, turn): b"%d" % turn})
    await lab.side.flush(timeout_s=60)
    assert await lab.tree() == expected
    assert lab.bucket_tree() == expected
    await lab.end()
