"""Whatever happens to the files of a tier, a reader gets the right bytes or none."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.errors import TierError, TierFailed, TierInUse
from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tests.tiers_local.policies import RandomPolicy
from forebay.tiers.local import LocalTier, TierOptions, block_slots
from forebay.tiers.local.checksum import header_sum
from forebay.tiers.local.files import OpenFile
from forebay.tiers.version import CHUNK_BYTES, ObjectVersion

MIB = 1024 * 1024
VERSIONS = [version_of(f"k{i}", size) for i, size in enumerate([10, 5000, 40_000, 110_000, 600_000, 3 * MIB + 77])]


class Folder:
    """A folder with objects in it, and ways to open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tier = self.open()
        for version in VERSIONS:
            self.tier.write(version, 0, content_of(version))

    def open(self) -> LocalTier:
        options = TierOptions("ssd", self.path, 64 * MIB, free_space_ratio=0.0, owner="the mount at /mnt/x")
        self.tier = LocalTier.open(options, RandomPolicy())
        return self.tier

    def files(self) -> list[Path]:
        return sorted(p for p in self.path.rglob("*") if p.is_file() and p.name not in ("lock", "format"))

    def check(self) -> int:
        """Read everything in several ways; the number of objects that are there as a whole."""
        whole = 0
        for version in VERSIONS:
            data = content_of(version)
            for offset in range(0, version.size, CHUNK_BYTES):
                for size in (5000, CHUNK_BYTES):
                    found = self.tier.read(version, offset, size)
                    assert found is None or found == data[offset : offset + size]
            found = self.tier.read(version, 0, version.size)
            assert found is None or found == data
            whole += found is not None
            # After a miss the tier says what to fetch: a reader that fetches it must get on.
            gaps = self.tier.missing(version, 0, version.size)
            assert (found is None) == bool(gaps)
        return whole

    def heal(self) -> None:
        """Bring in again what is missing, as the cache does; then all must be there."""
        for version in VERSIONS:
            data = content_of(version)
            for offset, size in self.tier.missing(version, 0, version.size):
                self.tier.write(version, offset, data[offset : offset + size])
        assert self.check() == len(VERSIONS)
        self.tier.validate()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "tier")
    yield made
    made.tier.close()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        if os.lseek(file.fileno(), offset, os.SEEK_DATA) != offset:
            return  # a hole has no bits
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def places(path: Path) -> list[int]:
    """Offsets that mean something: headers, tables, checksums, data, and the end."""
    size = path.stat().st_size
    near_start = [0, 9, 20, 33, 60, 100, 4096, 4100, 4121, 4122, 4124, 4130, 4096 + 8 * 50]
    slab = [2 * MIB + x for x in (0, 5, 20, 33, 41, 49, 60, 5200, 9000, 60_000, 300_000)] if size > 2 * MIB else []
    return [p for p in {*near_start, *slab, size // 2, size // 3, size - 1} if p < size]


@pytest.mark.parametrize("reopen", [False, True])
def test_bits_flipped_anywhere(folder: Folder, reopen: bool) -> None:
    harmful = 0
    for path in folder.files():
        for offset in places(path):
            flip(path, offset)
            if reopen:
                folder.tier.close()
                folder.open()
            lost = folder.check() < len(VERSIONS)
            harmful += lost
            if lost:
                assert folder.tier.stats().corrupt
            folder.heal()
            if not path.exists():
                break
    assert harmful > 10, "hardly a flip was noticed"


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("size", [0, 10, 4096, 4200, 2 * MIB + 100, 2 * MIB + 70_000])
def test_files_cut_short(folder: Folder, size: int, reopen: bool) -> None:
    for path in folder.files():
        if path.exists() and path.stat().st_size > size:
            with path.open("r+b") as file:
                file.truncate(size)
            if reopen:
                folder.tier.close()
                folder.open()
            folder.check()
            folder.heal()


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("suffix", [".data", ".map", ".slab"])
def test_files_deleted_underneath(folder: Folder, suffix: str, reopen: bool) -> None:
    for path in folder.files():
        if path.suffix == suffix:
            path.unlink()
    if reopen:
        folder.tier.close()
        folder.open()
        assert folder.check() < len(VERSIONS)
        folder.heal()
    else:
        # What is open stays readable; what is written now must be there after a restart, or be a miss.
        folder.check()
        for version in VERSIONS:
            folder.tier.drop(version)
            folder.tier.write(version, 0, content_of(version))
        folder.check()
        folder.tier.close()
        folder.open()
        folder.check()
        folder.heal()


def test_the_whole_folder_deleted_underneath(folder: Folder) -> None:
    for name in ("slabs", "extents"):
        shutil.rmtree(folder.path / name)
    folder.check()
    for i in range(3):
        version = version_of(f"new{i}", 2 * MIB)
        with pytest.raises(TierFailed):
            folder.tier.write(version, 0, content_of(version))
    assert not folder.tier.stats().writable


def test_files_of_two_objects_exchanged(folder: Folder) -> None:
    twin = version_of("twin", VERSIONS[-1].size, "other")
    folder.tier.write(twin, 0, content_of(twin))
    folder.tier.close()
    for suffix in (".data", ".map"):
        first, second = [p for p in folder.files() if p.suffix == suffix]
        aside = first.with_suffix(".aside")
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
    folder.open()
    folder.check()
    assert folder.tier.read(twin, 0, 100) is None
    folder.heal()


def test_only_the_data_of_two_objects_exchanged(folder: Folder) -> None:
    twin = version_of("twin", VERSIONS[-1].size, "other")
    folder.tier.write(twin, 0, content_of(twin))
    folder.tier.close()
    first, second = [p for p in folder.files() if p.suffix == ".data"]
    first.write_bytes(second.read_bytes())
    folder.open()
    folder.check()
    folder.heal()


@pytest.mark.parametrize("damage", ["another boot", "gone", "a slot", "empty"])
def test_a_table_of_blocks_that_cannot_be_trusted_costs_time_and_no_bytes(folder: Folder, damage: str) -> None:
    stray, held = version_of("stray", 5 * MIB), version_of("held", 9 * MIB)
    for version in (stray, held):
        folder.tier.write(version, 0, content_of(version))
    table = folder.path / "blocks"
    folder.tier._folder.close()  # as if the process had been killed: not closed properly
    folder.tier._block_slots._open_file = None
    content = bytearray(table.read_bytes())
    if damage == "another boot":
        # A power failure: the table is from another boot, and some of its slots were never written.
        packed = block_slots._HEADER.pack(
            block_slots.TABLE_MAGIC, block_slots.TABLE_VERSION, 0, 0, b"x" * 36, table.stat().st_ino
        )
        content[: len(packed)] = packed
        content[len(packed) : len(packed) + 8] = header_sum(packed).to_bytes(8, "little")
        for slot in range(block_slots.HEADER_BYTES, len(content), block_slots.SLOT_BYTES):
            block = int.from_bytes(content[slot + 16 : slot + 20], "little")
            if content[slot : slot + 16] == stray.digest or (content[slot : slot + 16] == held.digest and block == 1):
                content[slot : slot + 32] = bytes(32)
    elif damage == "a slot":
        content[block_slots.HEADER_BYTES + 5] ^= 1
    elif damage == "empty":
        content.clear()
    table.write_bytes(content)
    if damage == "gone":
        table.unlink()
    folder.open()
    assert folder.check() == len(VERSIONS)
    for version in (stray, held):
        assert folder.tier.cached_bytes(version) == version.size
        assert folder.tier.read(version, 0, version.size) == content_of(version)
    folder.tier.validate()
    folder.tier.close()
    folder.open()
    assert folder.tier.cached_bytes(stray) == stray.size
    folder.tier.validate()


def test_random_garbage_in_every_file(folder: Folder) -> None:
    choose = random.Random(3)
    for _ in range(10):
        for path in folder.files():
            size = path.stat().st_size
            with path.open("r+b") as file:
                for _ in range(4):
                    file.seek(choose.randrange(size))
                    file.write(choose.randbytes(choose.choice([1, 16, 5000])))
        folder.check()
        folder.tier.close()
        folder.open()
        folder.check()
        folder.heal()


GARBAGE: list[bytes] = [
    b"",
    b"\xff\xfe{",
    b"[]",
    b'{"name": "x"}',
    b'{"name": "forebay tier", "version": "1"}',
    b"null",
]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_format_file_starts_afresh(folder: Folder, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder.tier.close()
    (folder.path / "format").write_bytes(content)
    (folder.path / "notes.txt").write_text("not ours")
    folder.open()
    assert folder.check() == 0
    assert "starting afresh" in caplog.text
    assert (folder.path / "notes.txt").read_text() == "not ours"
    folder.heal()


def test_a_newer_format_is_refused_and_left_alone(folder: Folder) -> None:
    folder.tier.close()
    format_file = folder.path / "format"
    saved = json.loads(format_file.read_text())
    format_file.write_text(json.dumps({**saved, "version": 99}))
    with pytest.raises(TierError, match=r"format 99.*newer forebay"):
        folder.open()
    format_file.write_text(json.dumps(saved))
    folder.open()
    assert folder.check() == len(VERSIONS)


def test_folders_that_are_not_ours_are_not_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "home" / "slabs"
    theirs.mkdir(parents=True)
    (theirs / "thesis").write_text("years of work")
    with pytest.raises(TierError, match="not a cache's"):
        LocalTier.open(TierOptions("ssd", tmp_path / "home", 64 * MIB), RandomPolicy())
    assert (theirs / "thesis").exists()


def test_a_folder_in_use_is_refused_and_its_holder_named(folder: Folder) -> None:
    with pytest.raises(TierInUse, match=r"in use by process \d+ .*the mount at /mnt/x, since 20"):
        Folder(folder.path)
    folder.tier.close()
    folder.open()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TierFailed, match="cannot use cache folder"):
        LocalTier.open(TierOptions("ssd", tmp_path / "file", 64 * MIB), RandomPolicy())


def test_a_file_system_without_holes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def punch(file: OpenFile, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(file.path))

    monkeypatch.setattr(OpenFile, "punch", punch)
    options = TierOptions("ssd", tmp_path / "tier", 64 * MIB)
    with pytest.raises(TierError, match=r"cannot punch holes; put the cache on ext4"):
        LocalTier.open(options, RandomPolicy())
    monkeypatch.undo()
    LocalTier.open(options, RandomPolicy()).close()


Wrong = Callable[[ObjectVersion], ObjectVersion]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda v: ObjectVersion(v.store, v.key, "other", v.size),
        lambda v: ObjectVersion(v.store, v.key + "x", v.etag, v.size),
        lambda v: ObjectVersion("s3://elsewhere", v.key, v.etag, v.size),
        lambda v: ObjectVersion(v.store, v.key, v.etag, v.size, "v1"),
        lambda v: ObjectVersion(v.store, v.key, v.etag, v.size + 1),
    ],
)
def test_another_version_is_never_served(folder: Folder, wrong: Wrong) -> None:
    for version in VERSIONS:
        assert folder.tier.read(wrong(version), 0, 10) is None
        assert folder.tier.cached_bytes(wrong(version)) == 0
