"""The write side on a bucket in memory: what is durable when, what reaches the bucket, and what never does."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.write.object_metadata import attributes_of
from forebay.errors import Incomplete, TierFull
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import FOLDER, PLAIN, Lab

MIB = 1024 * 1024


async def restarted(lab: Lab, **options: Any) -> Lab:
    await lab.crash()
    lab.side = (await Lab.start(lab.folder, lab.bucket, lab.side.state.prefix, **options)).side
    lab.side.state.validate()
    return lab


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.002)


async def test_a_closed_file_reaches_the_bucket_with_its_attributes(lab: Lab) -> None:
    lab.mkdir(b"a")
    lab.write(b"a/b.bin", b"content")
    node = lab.side.set_attributes(b"a/b.bin", mode=0o600, uid=7, gid=8, mtime_ns=1_700_000_000_123_456_789)
    lab.side.set_xattr(b"a/b.bin", b"user.k", b"\0v")
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"a/": b"", "a/b.bin": b"content"}
    stored = attributes_of(lab.bucket.objects["a/b.bin"].metadata)
    assert stored.mtime_ns == 1_700_000_000_123_456_789
    assert (stored.st_mode, stored.uid, stored.gid) == (0o100600, 7, 8)
    assert stored.xattrs == {b"user.k": b"\0v"}
    where = lab.side.whereabouts(b"a/b.bin")
    assert where is not None
    assert where.state == "clean"
    assert node.mtime_ns == 1_700_000_000_123_456_789


async def test_what_was_closed_survives_a_crash_and_what_was_not_is_gone(lab: Lab) -> None:
    lab.write(b"small", b"s")
    lab.write(b"large", b"l" * 200_000)
    open_file = lab.create(b"never-closed")
    open_file.write(0, b"x" * 100_000)
    await restarted(lab)
    assert await lab.tree() == {b"small": b"s", b"large": b"l" * 200_000}
    assert len(list(lab.side.tier.names())) == 1, "the data of the file that was never closed is garbage"


async def test_truncating_open_keeps_the_old_content_until_the_new_is_closed(lab: Lab) -> None:
    lab.write(b"f", b"old" * 50_000)
    file = lab.side.open(b"f", writable=True, truncate=True)
    file.write(0, b"new" * 50_000)
    await restarted(lab)
    assert await lab.read(b"f") == b"old" * 50_000
    lab.write(b"f", b"new")
    await restarted(lab)
    assert await lab.read(b"f") == b"new"


async def test_a_small_change_of_a_large_object_stores_and_sends_little(lab: Lab) -> None:
    content = random.Random(1).randbytes(40 * MIB)
    lab.bucket.write("big", content)
    lab.patch(b"big", 20 * MIB + 5, b"changed")
    where = lab.side.whereabouts(b"big")
    assert where is not None
    assert where.stored_bytes == 7
    expected = content[: 20 * MIB + 5] + b"changed" + content[20 * MIB + 12 :]
    assert await lab.read(b"big") == expected
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"big": expected}
    assert lab.side.uploads.counts.copied_bytes >= 20 * MIB
    assert lab.side.uploads.counts.sent_bytes <= 16 * MIB
    assert await lab.read(b"big") == expected


async def test_the_checkpoint_pattern_sends_the_final_name_only(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, MultipartBucket(), writeback_delay_s=30.0)
    for version in range(3):
        lab.write(b"ckpt.tmp", b"v%d" % version)
        lab.rename(b"ckpt.tmp", b"ckpt.pt")
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"ckpt.pt": b"v2"}
    assert lab.bucket.calls["put"] == 1
    await lab.side.close()


async def test_a_file_deleted_while_its_upload_hangs_does_not_come_back(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.HOLD if kind == "put" and key == "f" else None
    lab.write(b"f", b"x")
    await until(lambda: lab.bucket.calls["put"] > 0)
    lab.unlink(b"f")
    lab.bucket.fault = lambda kind, key: None
    lab.bucket.released.set()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {}
    assert await lab.tree() == {}


async def test_a_file_renamed_while_its_upload_hangs_is_uploaded_under_the_new_name_only(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.HOLD if kind == "put" and key == "f" else None
    lab.write(b"f", b"x")
    await until(lambda: lab.bucket.calls["put"] > 0)
    lab.rename(b"f", b"g")
    lab.bucket.fault = lambda kind, key: None
    lab.bucket.released.set()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"g": b"x"}


async def test_a_file_changed_while_its_parts_are_read_is_never_published_torn(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.HOLD if kind == "part" else None
    lab.write(b"f", b"a" * (40 * MIB))
    await until(lambda: lab.bucket.calls["part"] > 0)
    lab.patch(b"f", 0, b"b" * (40 * MIB))
    lab.bucket.fault = lambda kind, key: None
    lab.bucket.released.set()
    await until(lambda: "f" in lab.bucket.contents())
    assert lab.bucket.contents()["f"] == b"b" * (40 * MIB)
    await lab.side.flush(timeout_s=120)
    assert lab.side.uploads.counts.disturbed >= 1
    assert lab.bucket.uploads == {}


async def test_appending_does_not_keep_a_log_from_being_uploaded(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.HOLD if kind == "part" else None
    file = lab.create(b"log")
    file.write(0, b"a" * (33 * MIB))
    file.sync()
    flushing = asyncio.create_task(lab.side.flush(b"log", timeout_s=120))
    await until(lambda: lab.bucket.calls["part"] > 0)
    file.append(b"b" * MIB)
    lab.bucket.fault = lambda kind, key: None
    lab.bucket.released.set()
    await until(lambda: "log" in lab.bucket.contents())
    assert lab.bucket.contents()["log"][: 33 * MIB] == b"a" * (33 * MIB)
    file.sync()
    await flushing
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents()["log"] == b"a" * (33 * MIB) + b"b" * MIB
    file.release()


@pytest.mark.parametrize("kind", ["put", "complete", "copy", "create", "delete"])
async def test_lost_answers_are_found_out(lab: Lab, kind: str) -> None:
    lost: list[str] = []

    def fault(asked: str, key: str) -> Fault | None:
        if asked == kind and len(lost) < 2:
            lost.append(key)
            return Fault.LOSE
        return None

    lab.bucket.write("listed", b"there before")
    lab.bucket.write("doomed", b"goes")
    lab.bucket.fault = fault
    lab.write(b"small", b"s")
    lab.write(b"large", b"l" * (20 * MIB))
    lab.rename(b"listed", b"moved")
    lab.unlink(b"doomed")
    await lab.side.flush(timeout_s=120)
    assert lost
    assert lab.bucket.contents() == {"small": b"s", "large": b"l" * (20 * MIB), "moved": b"there before"}
    assert lab.side.uploads.counts.conflicts == 0
    assert lab.bucket.uploads == {}


async def test_an_outage_delays_and_loses_nothing(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    for index in range(20):
        lab.write(b"f%d" % index, b"%d" % index)
    with pytest.raises(Incomplete, match="20 files are not in the bucket"):
        await lab.side.flush(timeout_s=0.3)
    assert lab.side.status().dirty_files == 20
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {f"f{index}": b"%d" % index for index in range(20)}


async def test_an_object_changed_from_outside_is_kept_beside_ours(lab: Lab) -> None:
    lab.bucket.write("f", b"first")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.write(b"f", b"ours")
    lab.bucket.write("f", b"theirs")
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    contents = lab.bucket.contents()
    assert contents.pop("f") == b"theirs"
    ((name, data),) = contents.items()
    assert name.startswith("f.conflict-")
    assert data == b"ours"
    assert lab.side.uploads.counts.conflicts == 1
    assert (await lab.tree())[b"f"] == b"theirs"


async def test_or_is_overwritten_if_that_was_asked_for(tmp_path: Path) -> None:
    from forebay.cache.write.options import OnConflict

    lab = await Lab.start(tmp_path, MultipartBucket(), on_conflict=OnConflict.OVERWRITE)
    lab.bucket.write("f", b"first")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.write(b"f", b"ours")
    lab.bucket.write("f", b"theirs")
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"f": b"ours"}
    assert lab.side.uploads.counts.conflicts == 1
    await lab.side.close()


async def test_a_change_of_attributes_never_overwrites_somebody_elses_bytes(lab: Lab) -> None:
    lab.bucket.write("f", b"first")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.side.set_attributes(b"f", lab.shown(b"f"), mode=0o600)
    lab.bucket.write("f", b"theirs, longer")
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"f": b"theirs, longer"}
    assert await lab.read(b"f") == b"theirs, longer"
    assert attributes_of(lab.bucket.objects["f"].metadata).st_mode == 0o100600


async def test_an_object_written_anew_by_others_is_not_deleted(lab: Lab) -> None:
    lab.bucket.write("f", b"first")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.unlink(b"f")
    assert lab.kind(b"f") is None
    lab.bucket.write("f", b"anew")
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"f": b"anew"}
    assert await lab.tree() == {b"f": b"anew"}


async def test_a_renamed_folder_is_seen_at_once_and_its_objects_follow(lab: Lab) -> None:
    for index in range(30):
        lab.bucket.write(f"old/sub{index % 3}/f{index}", b"%d" % index)
    lab.bucket.write("old/", b"")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.write(b"old/dirty", b"d")
    lab.rename(b"old", b"new")
    lab.unlink(b"new/sub0/f0")
    lab.patch(b"new/sub1/f1", 0, b"X")
    expected: dict[bytes, bytes | str] = {b"new/sub%d/f%d" % (i % 3, i): b"%d" % i for i in range(1, 30)}
    expected |= {b"new": FOLDER, b"new/dirty": b"d", b"new/sub1/f1": b"X"}
    expected |= {b"new/sub%d" % i: FOLDER for i in range(3)}
    lab.bucket.fault = lambda kind, key: Fault.REFUSE if kind in ("put", "copy", "list", "delete") else None
    assert await lab.tree() == expected
    await restarted(lab)
    lab.bucket.fault = lambda kind, key: None
    assert await lab.tree() == expected
    await lab.side.flush(timeout_s=120)
    assert await lab.tree() == expected
    assert lab.bucket_tree() == expected
    assert not [key for key in lab.bucket.contents() if key.startswith("old")]
    moved = lab.side.resolve(b"new")
    assert moved is not None
    assert lab.side.state.doomed == {}


async def test_exchanged_files_swap_their_objects(lab: Lab) -> None:
    lab.bucket.write("a", b"was a")
    lab.bucket.write("b", b"was b")
    lab.side.exchange(b"a", b"b", lab.shown(b"a"), lab.shown(b"b"))
    assert await lab.tree() == {b"a": b"was b", b"b": b"was a"}
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"a": b"was b", "b": b"was a"}


async def test_empty_folders_persist_and_emptied_ones_stay(lab: Lab) -> None:
    lab.mkdir(b"empty")
    lab.bucket.write("implicit/only", b"x")
    lab.unlink(b"implicit/only")
    await lab.side.flush(timeout_s=120)
    assert lab.bucket_tree() == {b"empty": FOLDER, b"implicit": FOLDER}
    lab.rmdir(b"empty")
    lab.rmdir(b"implicit")
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {}


async def test_a_file_unlinked_while_open_is_still_read_and_leaves_nothing(lab: Lab) -> None:
    for size in (10, 100_000):
        lab.write(b"f", b"x" * size)
        file = lab.side.open(b"f", writable=True)
        lab.unlink(b"f")
        assert bytes(await lab.side.fetch(file, 0, size)) == b"x" * size
        file.write(0, b"y")
        assert bytes(await lab.side.fetch(file, 0, 2)) == b"yx"
        file.sync()
        file.release()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {}
    assert list(lab.side.tier.names()) == []
    assert list(lab.side.records.inline_names()) == []


async def test_an_object_that_an_open_file_reads_waits_with_its_deletion(lab: Lab) -> None:
    lab.bucket.write("f", b"content")
    file = lab.side.open(b"f", lab.shown(b"f"), writable=True)
    lab.unlink(b"f")
    await asyncio.sleep(0.05)
    assert bytes(await lab.side.fetch(file, 0, 100)) == b"content"
    file.release()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {}


async def test_writers_wait_for_room_and_then_get_enospc(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, MultipartBucket(), max_dirty_bytes=100_000, dirty_wait_s=1.0)
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.write(b"f", b"x" * 90_000)
    assert lab.side.has_room(10_000)
    assert not lab.side.has_room(10_001)
    with pytest.raises(TierFull, match="90000 bytes in 1 files wait"):
        await lab.side.wait_for_room(20_000)
    waiting = asyncio.create_task(lab.side.wait_for_room(20_000))
    lab.bucket.fault = lambda kind, key: None
    lab.side.writeback.retry_now()
    await waiting
    await lab.side.close()


async def test_a_full_tier_fails_the_writer_and_keeps_what_was_acked(lab: Lab) -> None:
    lab.write(b"f", b"x" * 100_000)
    file = lab.create(b"g")

    def full(size: int) -> None:
        raise TierFull("write tier is full")

    tier = lab.side.tier
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tier, "claim", full)
        with pytest.raises(TierFull):
            file.write(0, b"y" * 100_000)
    file.release()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"f": b"x" * 100_000, "g": b""}


async def test_exclusive_creation_and_errors_of_names(lab: Lab) -> None:
    lab.bucket.write("listed", b"x")
    lab.bucket.write("dir/f", b"x")
    lab.write(b"node", b"x")
    for path in (b"listed", b"node", b"dir"):
        with pytest.raises(FileExistsError):
            lab.create(path)
        with pytest.raises(FileExistsError):
            lab.mkdir(path)
    with pytest.raises(FileNotFoundError):
        lab.unlink(b"nothing")
    with pytest.raises(IsADirectoryError):
        lab.unlink(b"dir")
    with pytest.raises(OSError, match="empty"):
        lab.rmdir(b"dir")
    with pytest.raises(NotADirectoryError):
        lab.rmdir(b"listed")
    with pytest.raises(IsADirectoryError):
        lab.side.rename(b"listed", b"dir", lab.shown(b"listed"), lab.shown(b"dir"))
    with pytest.raises(NotADirectoryError):
        lab.rename(b"dir", b"listed")
    with pytest.raises(OSError, match="into itself"):
        lab.rename(b"dir", b"dir/sub")
    with pytest.raises(FileExistsError):
        lab.side.rename(b"node", b"listed", None, lab.shown(b"listed"), replace=False)
    lab.unlink(b"listed")
    with pytest.raises(FileNotFoundError):
        lab.unlink(b"listed")
    lab.create(b"listed").release()
    assert lab.kind(b"listed") is not None


async def test_appends_of_two_handles_do_not_overwrite_each_other(lab: Lab) -> None:
    first, second = lab.create(b"log"), lab.side.open(b"log", writable=True)
    for index in range(50):
        (first if index % 2 else second).append(b"%02d" % index)
    first.release()
    second.release()
    assert await lab.read(b"log") == b"".join(b"%02d" % index for index in range(50))


async def test_a_symlink_is_an_object_that_s3fs_knows(lab: Lab) -> None:
    lab.side.symlink(b"link", b"../target", PLAIN)
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents() == {"link": b"../target"}
    mode = attributes_of(lab.bucket.objects["link"].metadata).st_mode
    assert mode is not None
    assert mode & 0o170000 == 0o120000


async def test_clean_bytes_are_given_up_from_the_high_watermark_to_the_low_and_dirty_ones_never(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, MultipartBucket(), high_watermark_bytes=500_000, low_watermark_bytes=250_000)
    for index in range(4):
        lab.write(b"f%d" % index, b"%d" % index * 100_000)
        await lab.side.flush(timeout_s=120)
    assert lab.side.state.held_bytes == 400_000
    lab.bucket.fault = lambda kind, key: Fault.REFUSE if kind == "put" else None
    lab.write(b"dirty", b"d" * 200_000)
    await until(lambda: len(list(lab.side.tier.names())) == 1)
    assert lab.side.state.held_bytes == 0
    assert lab.side.state.dirty_bytes == 200_000
    for index in range(4):
        assert await lab.read(b"f%d" % index) == b"%d" % index * 100_000
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=120)
    await lab.side.close()


async def test_records_go_once_the_listing_has_caught_up(tmp_path: Path) -> None:
    lab = await Lab.start(
        tmp_path, MultipartBucket(), max_clean_records=3, high_watermark_bytes=0, low_watermark_bytes=0
    )
    lab.mkdir(b"d")
    for index in range(10):
        lab.write(b"d/f%d" % index, b"%d" % index)
    await lab.side.flush(timeout_s=120)
    lab.unlink(b"d/f9")
    lab.mkdir(b"gone")
    lab.write(b"gone/f", b"x")
    await lab.side.flush(timeout_s=120)
    lab.unlink(b"gone/f")
    lab.rmdir(b"gone")
    lab.mkdir(b"gone")
    await lab.side.flush(timeout_s=120)
    await until(lambda: len(lab.side.state.clean) <= 3 and not lab.side.state.whiteouts and not lab.side.state.opaque)
    expected: dict[bytes, bytes | str] = {b"d/f%d" % index: b"%d" % index for index in range(9)}
    assert await lab.tree() == expected | {b"d": FOLDER, b"gone": FOLDER}
    await lab.side.close()


async def test_what_no_key_is_long_enough_for_is_refused_when_it_is_made(tmp_path: Path) -> None:
    lab = await Lab.start(tmp_path, MultipartBucket(), b"p/")
    deep = b"/".join([b"d" * 100] * 9)
    for depth in range(9):
        lab.mkdir(b"/".join([b"d" * 100] * (depth + 1)))
    assert len(b"p/" + deep) == 910
    lab.write(deep + b"/" + b"f" * 113, b"fits")
    for act in (
        lambda: lab.write(deep + b"/" + b"f" * 114, b"x"),
        lambda: lab.mkdir(deep + b"/" + b"f" * 113),
        lambda: lab.side.symlink(deep + b"/" + b"f" * 114, b"t", PLAIN),
        lambda: lab.rename(deep + b"/" + b"f" * 113, deep + b"/" + b"g" * 114),
        lambda: lab.rename(b"d" * 100, b"e" * 101),
    ):
        with pytest.raises(OSError, match="at most 1024 bytes"):
            act()
    lab.rename(b"d" * 100, b"e" * 100)
    await lab.side.flush(timeout_s=120)
    assert await lab.tree() == lab.bucket_tree()
    await lab.side.close()


async def test_failures_of_what_is_gone_are_forgotten(lab: Lab) -> None:
    lab.bucket.fault = lambda kind, key: Fault.REFUSE if key.startswith("f") else None
    lab.write(b"f", b"x")
    lab.mkdir(b"fd")
    await until(lambda: len(lab.side.status().failures) == 2)
    lab.rename(b"f", b"g")
    lab.rmdir(b"fd")
    lab.bucket.fault = lambda kind, key: None
    lab.side.writeback.retry_now()
    await lab.side.flush(timeout_s=120)
    await until(lambda: not lab.side.writeback.failures)


async def test_the_time_that_a_folder_was_given_stays(lab: Lab) -> None:
    lab.mkdir(b"d")
    lab.write(b"d/f", b"x")
    assert lab.side.state.touched
    node = lab.side.set_attributes(b"d", mtime_ns=1_000_000_000)
    assert node.mtime_ns == 1_000_000_000
    assert node.id not in lab.side.state.touched


@pytest.mark.parametrize("fate", ["replaced", "deleted"])
async def test_a_renamed_object_that_others_changed_meanwhile_is_followed(lab: Lab, fate: str) -> None:
    lab.bucket.write("f", b"first")
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    lab.rename(b"f", b"g")
    if fate == "replaced":
        lab.bucket.write("f", b"theirs")
    else:
        del lab.bucket.objects["f"]
    lab.bucket.fault = lambda kind, key: None
    await lab.side.flush(timeout_s=60)
    assert lab.bucket.contents().get("g") == (b"theirs" if fate == "replaced" else None)
    assert lab.side.uploads.counts.conflicts == 1
