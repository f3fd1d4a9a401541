"""The view: the contract of fuse_mount/view.py, without a kernel."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.fuse_mount.snapshot_view import READ_BATCH, SnapshotName, SnapshotView
from forebay.fuse_mount.view import ROOT_INO, Absent, Kind, Node, View
from forebay.snapshots.tree_index import TreeIndex
from forebay.tests.support.snapshot_rows import COMMIT, COMMIT_TIME_NS, Row, build

COUNT = 2 * READ_BATCH + 10


@pytest.fixture
def index(tmp_path: Path) -> Iterator[TreeIndex]:
    rows = [Row(f"big/{n:05}", size=n) for n in range(COUNT)]
    rows += [Row("top", size=7, labels={"class": "cat"}, sha256="ab" * 32, version_id="v9"), Row("big/00000-x/deep/f")]
    with build(tmp_path, rows, batch_rows=1000) as opened:
        yield opened


@pytest.fixture
def view(index: TreeIndex) -> SnapshotView:
    return SnapshotView(index, SnapshotName("photos", "v7", COMMIT))


def find(view: View, path: bytes) -> Node:
    node = view.node(ROOT_INO)
    for name in path.split(b"/"):
        found = view.peek(node.ino, name)
        assert isinstance(found, Node), (path, found)
        node = found
    return node


def test_the_root_is_a_folder_and_names_never_expire(view: SnapshotView) -> None:
    assert view.node(ROOT_INO) == Node(ROOT_INO, Kind.DIRECTORY, 0, COMMIT_TIME_NS, math.inf)
    assert find(view, b"top") == Node(find(view, b"top").ino, Kind.FILE, 7, 1_600_000_000_000_000_000, math.inf)
    assert find(view, b"big/00000-x/deep").kind is Kind.DIRECTORY
    assert view.negative_ttl_s == math.inf


async def test_what_is_not_there_is_certainly_not_there(view: SnapshotView) -> None:
    assert view.peek(ROOT_INO, b"nope") is Absent.ABSENT
    assert await view.lookup(ROOT_INO, b"nope") is Absent.ABSENT
    assert view.peek(find(view, b"top").ino, b"top") is Absent.ABSENT
    assert await view.lookup(ROOT_INO, b"top") == find(view, b"top")


async def test_a_file_is_the_object_version_that_the_snapshot_recorded(view: SnapshotView) -> None:
    version = view.version(find(view, b"top").ino)
    assert (version.store, version.key, version.size, version.version_id) == ("s3://bucket", "images/top", 7, "v9")
    with pytest.raises(IsADirectoryError):
        view.version(find(view, b"big").ino)
    with pytest.raises(NotADirectoryError):
        await view.open_directory(find(view, b"top").ino)


async def test_a_directory_can_be_read_from_any_cookie(view: SnapshotView) -> None:
    directory = await view.open_directory(find(view, b"big").ino)
    whole = list(directory.read(0, plus=False))
    assert len(whole) == COUNT + 1
    assert whole[0].name == b"00000-x"  # folders first
    assert [entry.cookie for entry in whole] == list(range(1, COUNT + 2))
    for entry in (whole[0], whole[5], whole[-1]):
        assert entry.node == find(view, b"big/" + entry.name)
    for cookie in (1, READ_BATCH - 1, READ_BATCH, READ_BATCH + 1, COUNT, COUNT + 1, 3):
        assert list(directory.read(cookie, plus=True)) == whole[cookie:]
    assert list(directory.read(COUNT + 50, plus=True)) == []


async def test_reading_on_in_small_pieces_sees_every_entry_once(view: SnapshotView) -> None:
    directory = await view.open_directory(find(view, b"big").ino)
    seen: list[bytes] = []
    cookie = 0
    while True:
        piece = [entry for entry, _ in zip(directory.read(cookie, plus=True), range(37), strict=False)]
        if not piece:
            break
        seen += [entry.name for entry in piece]
        cookie = piece[-1].cookie
    assert len(seen) == len(set(seen)) == COUNT + 1


def test_extended_attributes_say_which_snapshot_and_what_of_the_file(view: SnapshotView) -> None:
    snapshot = {
        "user.forebay.dataset": b"photos",
        "user.forebay.ref": b"v7",
        "user.forebay.commit": COMMIT.encode(),
    }
    assert view.xattrs(ROOT_INO) == snapshot
    assert view.xattrs(find(view, b"top").ino) == snapshot | {
        "user.forebay.path": b"top",
        "user.forebay.labels": b'{"class": "cat"}',
        "user.forebay.sha256": b"ab" * 32,
    }


def test_the_view_satisfies_the_protocol(view: SnapshotView) -> None:
    checked: View = view
    assert checked.path(find(checked, b"big/00003").ino) == b"big/00003"
    checked.forget(ROOT_INO, 3)
