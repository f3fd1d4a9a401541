"""Folders renamed while what is in them is uploaded, and old names taken into use again: nothing is seen twice, nothing comes back."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.cache.write.nodes import Node
from forebay.cache.write.object_metadata import TAG
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket, Stored, etag_of
from forebay.tests.support.write_lab import FOLDER, Lab


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.002)


def refuse(*refused: tuple[str, str]) -> Callable[[str, str], Fault | None]:
    """Refuses requests of a kind for keys that begin so."""
    return lambda kind, key: (
        Fault.REFUSE if any(kind == one and key.startswith(begin) for one, begin in refused) else None
    )


async def settled(lab: Lab) -> None:
    """Everything allowed again, flushed, and the same in the view and in the bucket."""
    lab.bucket.fault = lambda kind, key: None
    lab.bucket.released.set()
    await lab.side.flush(timeout_s=120)
    lab.side.state.validate()
    assert lab.side.uploads.counts.conflicts == 0
    assert lab.side.deletions.spared == 0
    assert await lab.tree() == lab.bucket_tree()


async def test_a_folder_renamed_while_a_changed_file_in_it_is_published(lab: Lab) -> None:
    """The object that was there before is overwritten by that upload: what is deleted later is the new one."""
    lab.mkdir(b"d")
    lab.write(b"d/f", b"first")
    await lab.side.flush(timeout_s=120)
    puts = lab.bucket.calls["put"]
    lab.bucket.fault = lambda kind, key: Fault.HOLD if kind == "put" and key == "d/f" else None
    lab.write(b"d/f", b"second")
    await until(lambda: lab.bucket.calls["put"] > puts)
    lab.rename(b"d", b"e")
    await settled(lab)
    assert lab.bucket.contents() == {"e/": b"", "e/f": b"second"}


async def test_a_name_that_was_taken_again_before_its_old_file_was_moved(lab: Lab) -> None:
    """The old file knows an object under the old key that is another's by now, and must not speak of it any more."""
    lab.mkdir(b"d")
    lab.write(b"d/f", b"first")
    await lab.side.flush(timeout_s=120)
    lab.bucket.fault = refuse(("put", "e/f"), ("copy", "e/f"), ("delete", "d/f"))
    lab.rename(b"d", b"e")
    lab.write(b"e/f", b"rewritten")
    lab.mkdir(b"d")
    lab.write(b"d/f", b"new")
    await until(lambda: lab.bucket.contents().get("d/f") == b"new")
    await until(lambda: not lab.side.state.attempts)
    lab.unlink(b"d/f")
    lab.unlink(b"e/f")
    await settled(lab)
    assert lab.bucket.contents() == {"d/": b"", "e/": b""}


async def test_a_new_folder_under_the_old_name_shares_nothing_with_the_moved_one(lab: Lab) -> None:
    for name in ("f1", "sub/f2"):
        lab.bucket.write(f"d/{name}", name.encode())
    lab.bucket.fault = refuse(("list", ""))  # so that the moved folder goes on showing its old prefix
    lab.rename(b"d", b"e")
    lab.mkdir(b"d")
    lab.mkdir(b"d/sub")
    lab.write(b"d/f1", b"new f1")
    lab.write(b"d/sub/new", b"new")
    moved: dict[bytes, bytes | str] = {b"e": FOLDER, b"e/f1": b"f1", b"e/sub": FOLDER, b"e/sub/f2": b"sub/f2"}
    new: dict[bytes, bytes | str] = {b"d": FOLDER, b"d/f1": b"new f1", b"d/sub": FOLDER, b"d/sub/new": b"new"}
    lab.side.writeback.retry_now()
    await asyncio.sleep(0.2)
    assert await lab.tree() == moved | new
    await settled(lab)
    assert await lab.tree() == moved | new


async def test_folders_that_change_places_take_their_content_with_them(lab: Lab) -> None:
    for index in range(20):
        lab.bucket.write(f"a/{index}", b"a%d" % index)
        lab.bucket.write(f"b/{index % 7}/{index}", b"b%d" % index)
    lab.side.exchange(b"a", b"b", lab.shown(b"a"), lab.shown(b"b"))
    lab.write(b"a/new", b"new")
    await settled(lab)
    assert await lab.read(b"a/3/3") == b"b3"
    assert await lab.read(b"b/3") == b"a3"
    assert lab.bucket.contents()["a/new"] == b"new"


async def test_a_folder_moved_twice_inside_one_that_is_moved(lab: Lab) -> None:
    """One that shows a prefix of its own history is gone through for itself, whatever the one above shows."""
    for index in range(5):
        lab.bucket.write(f"old/{index}", b"%d" % index)
    lab.mkdir(b"top")
    await lab.side.flush(timeout_s=120)
    lab.rename(b"old", b"top/in")
    await lab.side.flush(timeout_s=120)
    await until(lambda: not lab.side.state.opaque)  # it shows its own prefix by now
    lab.bucket.fault = refuse(("list", ""))
    lab.rename(b"top", b"on")
    lab.rename(b"on/in", b"on/out")
    lab.rename(b"on", b"there")
    lab.mkdir(b"top")
    lab.mkdir(b"top/in")
    lab.write(b"top/in/0", b"new")
    expected: dict[bytes, bytes | str] = {b"there/out/%d" % index: b"%d" % index for index in range(5)}
    expected |= {b"there": FOLDER, b"there/out": FOLDER, b"top": FOLDER, b"top/in": FOLDER, b"top/in/0": b"new"}
    await asyncio.sleep(0.1)
    assert await lab.tree() == expected
    await settled(lab)
    assert await lab.tree() == expected


async def test_a_folder_moved_and_moved_back_shows_what_it_has(lab: Lab) -> None:
    for index in range(5):
        lab.bucket.write(f"d/{index}", b"%d" % index)
    lab.bucket.fault = refuse(("delete", ""))
    lab.unlink(b"d/4")
    lab.rename(b"d", b"e")
    lab.rename(b"e", b"d")
    await asyncio.sleep(0.1)
    assert lab.names(b"d") == {b"0", b"1", b"2", b"3"}
    await settled(lab)
    assert lab.names(b"d") == {b"0", b"1", b"2", b"3"}


@pytest.mark.parametrize("goes", ["moved", "removed"])
async def test_a_folder_without_marker_is_not_seen_by_what_is_still_to_be_deleted_in_it(lab: Lab, goes: str) -> None:
    lab.side.uploads.busy_keys.add(b"d/")  # nothing is put there for now
    lab.mkdir(b"d")
    lab.write(b"d/f", b"x")
    await until(lambda: "d/f" in lab.bucket.contents())
    await until(lambda: not lab.side.state.attempts)
    lab.bucket.fault = refuse(("delete", ""), ("copy", ""))
    if goes == "moved":
        lab.rename(b"d", b"e")
    else:
        lab.unlink(b"d/f")
        lab.rmdir(b"d")
    assert b"d" not in lab.names(b"")
    lab.side.uploads.busy_keys.discard(b"d/")
    await settled(lab)
    assert set(lab.bucket.contents()) == ({"e/", "e/f"} if goes == "moved" else set())


@pytest.mark.parametrize("then", ["kept", "unlinked", "replaced"])
async def test_an_upload_that_arrives_after_it_was_looked_for(tmp_path: Path, then: str) -> None:
    """It is ours whatever has become of the file, and no conflict; of a deleted file it is deleted at the second look."""
    lab = await Lab.start(tmp_path, MultipartBucket(), recheck_s=0.5)
    lab.bucket.fault = refuse(("put", "f"))
    lab.write(b"f", b"late")
    await until(lambda: bool(lab.side.state.attempts))
    (late,) = lab.side.state.attempts.values()
    await until(lambda: lab.bucket.calls["put"] >= 2)  # it was looked for, and begun anew
    if then == "unlinked":
        lab.unlink(b"f")
        await until(lambda: not lab.side.state.attempts)
    elif then == "replaced":
        lab.unlink(b"f")
        lab.write(b"f", b"another file")
    lab.bucket.objects["f"] = Stored(b"late", {TAG: late.tag}, etag_of(b"late"))
    lab.bucket.fault = lambda kind, key: None
    await until(lambda: not (lab.side.state.dirty or lab.side.state.doomed or lab.side.state.attempts))
    expected = {"kept": {"f": b"late"}, "unlinked": {}, "replaced": {"f": b"another file"}}[then]
    assert lab.bucket.contents() == expected
    assert lab.side.uploads.counts.conflicts == 0
    found = lab.side.resolve(b"f")
    assert isinstance(found, Node) == (then != "unlinked")
    await lab.side.close()
