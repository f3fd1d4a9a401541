"""What is special about folders: changes in place, links, odd names, and what file systems can and cannot do."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.errors import ObjectChanged, ObjectNotFound, StoreDenied, StoreUnavailable, UsageError
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.folder import FolderStore
from forebay.tiers.version import ObjectVersion


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FolderStore]:
    opened, _ = open_store(root.as_uri(), StoreOptions(timeout_s=30))
    assert isinstance(opened, FolderStore)
    yield opened
    await opened.close()


async def version_of(store: FolderStore, key: str) -> ObjectVersion:
    info = await store.head(key)
    assert info is not None
    return store.version(info)


def change_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"X")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


async def test_a_change_in_place_is_another_version(store: FolderStore, root: Path) -> None:
    file = root / "a"
    file.write_bytes(b"content")
    old = await version_of(store, "a")
    change_in_place(file)
    with pytest.raises(ObjectChanged):
        await store.get_range(old, 0, 7)
    assert bytes(await store.get_range(await version_of(store, "a"), 0, 7)) == b"Xontent"


async def test_links_inside_are_followed_and_others_are_not_shown(store: FolderStore, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(b"1")
    (root / "to-file").symlink_to("folder/file")
    (root / "to-folder").symlink_to(root / "folder")
    (root / "to-outside").symlink_to(outside)
    (root / "to-secret").symlink_to(outside / "secret")
    (root / "to-nothing").symlink_to("no/such")
    (root / "folder" / "circle").symlink_to(root)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "socket"))  # noqa: ASYNC240
        page = await store.list_page("")
    assert page.keys == ["folder/file", "to-file", "to-folder/file"]
    assert set(store.counters.skipped) == {
        "a link that leaves the folder",
        "a link to nothing",
        "a link that leads in a circle",
        "neither file nor folder",
    }
    assert bytes(await store.get_range(await version_of(store, "to-file"), 0, 1)) == b"1"
    for key in ("to-secret", "to-outside/secret", "pipe", "socket", "to-nothing", "../outside/secret", "folder"):
        assert await store.head(key) is None
        with pytest.raises(ObjectNotFound):
            await store.get_range(ObjectVersion(store.id, key, "x", 6), 0, 6)
    assert (await store.list_page("to-outside/")).keys == []
    with pytest.raises(StoreDenied):
        await store.put("to-outside/new", b"x")


async def test_names_of_any_bytes(store: FolderStore, root: Path) -> None:
    for name in (b"bad\xff", b"new\nline", b" ", b"a\\b", "日本".encode()):
        with open(os.path.join(os.fsencode(root), name), "wb") as file:  # noqa: ASYNC230
            file.write(name)
    page = await store.list_page("")
    assert [os.fsencode(key) for key in page.keys] == sorted([b"bad\xff", b"new\nline", b" ", b"a\\b", "日本".encode()])
    for key in page.keys:
        data = await store.get_range(await version_of(store, key), 0, len(os.fsencode(key)))
        assert bytes(data) == os.fsencode(key)


@pytest.mark.parametrize("key", ["", "/", "a//b", "../x", "a/../b", "./a", "a\0b", "/a"])
async def test_keys_that_no_file_can_have(store: FolderStore, key: str) -> None:
    assert await store.head(key) is None
    with pytest.raises(UsageError):
        await store.put(key, b"x")
    await store.delete(key)


async def test_an_empty_folder_is_a_marker(store: FolderStore, root: Path) -> None:
    await store.put("empty/", b"")
    await store.put("full/x", b"1")
    assert (root / "empty").is_dir()
    assert (await store.list_page("")).keys == ["empty/", "full/x"]
    assert (await store.list_page("", delimiter="/")).prefixes == ["empty/", "full/"]
    assert (await store.list_page("empty/", delimiter="/")).keys == ["empty/"]
    assert await store.head("empty/") is not None
    assert await store.head("no/") is None
    await store.delete("full/")
    assert (await store.list_page("full/")).keys == ["full/x"]
    await store.delete("empty/")
    assert (await store.list_page("")).keys == ["full/x"]


async def test_metadata_is_kept(store: FolderStore) -> None:
    try:
        await store.put("a", b"1", metadata={"mtime": "12.5", "mode": "33188"})
    except Exception as error:
        pytest.skip(f"no extended attributes here: {error}")
    version = await version_of(store, "a")
    await store.copy(version, "same")
    await store.copy(version, "other", metadata={"mode": "1"})
    found = [await store.head(key) for key in ("a", "same", "other")]
    assert [dict(info.metadata) for info in found if info is not None] == [
        {"mtime": "12.5", "mode": "33188"},
        {"mtime": "12.5", "mode": "33188"},
        {"mode": "1"},
    ]


async def test_a_write_is_whole_or_not_at_all(store: FolderStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put("a", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    impatient = FolderStore(root, StoreOptions(timeout_s=0.2))
    with pytest.raises(StoreUnavailable, match="No space left"):
        await impatient.put("a", b"new")
    await impatient.close()
    monkeypatch.undo()
    assert os.listdir(root) == ["a"]
    assert bytes(await store.get_range(await version_of(store, "a"), 0, 3)) == b"old"


async def test_two_writers_on_one_condition(store: FolderStore, root: Path) -> None:
    other = FolderStore(root, StoreOptions(timeout_s=30))
    first = await store.put("a", b"0")
    results = await asyncio.gather(
        *((store, other)[number % 2].put("a", b"%02d" % number, if_match=first.etag) for number in range(10)),
        return_exceptions=True,
    )
    assert sum(1 for result in results if not isinstance(result, ObjectChanged)) == 1
    results = await asyncio.gather(
        *((store, other)[number % 2].put("b", b"x", if_absent=True) for number in range(10)), return_exceptions=True
    )
    assert sum(1 for result in results if not isinstance(result, ObjectChanged)) == 1
    await other.close()


async def test_a_long_listing_goes_on_without_its_walk(store: FolderStore, root: Path) -> None:
    for number in range(50):
        (root / f"k{number:02d}").touch()
    page = await store.list_page("", limit=20)
    # Other listings push the walk out.
    for number in range(20):
        await store.list_page("k", limit=1 + number)
    rest = await store.list_page("", limit=100, token=page.next_token)
    assert [*page.keys, *rest.keys] == [f"k{number:02d}" for number in range(50)]


async def test_listing_only_knows_slashes(store: FolderStore) -> None:
    with pytest.raises(UsageError, match="delimiter"):
        await store.list_page("", delimiter="-")
