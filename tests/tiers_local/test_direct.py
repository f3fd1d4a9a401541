"""Direct writes and reads: the same bytes as any other, and the usual way where they cannot be made or do not pay."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from forebay.tiers.local import FifoPolicy, LocalTier, TierOptions
from forebay.tiers.local import direct as direct_module
from forebay.tiers.local.direct import SMALLEST_BYTES, WRITES_UNTIL_RETRY, DirectReads, DirectWrites, on_tmpfs
from forebay.tiers.local.files import OpenFile
from forebay.tiers.local.read_buffers import BUFFER_BYTES
from forebay.tiers.version import BLOCK_BYTES, ObjectVersion

KIB = 1024


@pytest.fixture
def file(tmp_path: Path) -> OpenFile:
    return OpenFile(tmp_path / "file", os.O_CREAT)


@pytest.fixture
def direct(tmp_path: Path) -> DirectWrites:
    writes = DirectWrites(tmp_path)
    probe = OpenFile(tmp_path / "probe", os.O_CREAT)
    if writes.write(probe, memoryview(bytes(SMALLEST_BYTES)), 0) == 0:
        pytest.skip("no direct writes on the file system of the temporary folder")
    return writes


def test_writes_whole_pages_of_what_it_gets(file: OpenFile, direct: DirectWrites) -> None:
    data = memoryview(os.urandom(BLOCK_BYTES + 100_000))[1:]  # not aligned in memory
    assert direct.write(file, data, 8192) == BLOCK_BYTES
    short = data[: SMALLEST_BYTES + 5]
    assert direct.write(file, short, 16 * BLOCK_BYTES) == SMALLEST_BYTES
    assert os.pread(file.fd, BLOCK_BYTES, 8192) == data[:BLOCK_BYTES]
    assert os.pread(file.fd, SMALLEST_BYTES, 16 * BLOCK_BYTES) == short[:SMALLEST_BYTES]


def test_cached_pages_do_not_hide_what_was_written(file: OpenFile, direct: DirectWrites) -> None:
    os.ftruncate(file.fd, BLOCK_BYTES)
    assert os.pread(file.fd, BLOCK_BYTES, 0) == bytes(BLOCK_BYTES)
    data = os.urandom(BLOCK_BYTES)
    assert direct.write(file, memoryview(data), 0) == BLOCK_BYTES
    assert os.pread(file.fd, BLOCK_BYTES, 0) == data


def test_small_and_unaligned_ones_are_left_to_the_caller(file: OpenFile, direct: DirectWrites) -> None:
    assert direct.write(file, memoryview(bytes(SMALLEST_BYTES - 1)), 0) == 0
    assert direct.write(file, memoryview(bytes(SMALLEST_BYTES)), 100) == 0


def test_not_on_tmpfs(tmp_path: Path) -> None:
    assert on_tmpfs(Path("/dev/shm"))
    assert not on_tmpfs(tmp_path / "not there")


def test_a_slow_disk_gets_the_page_cache_and_is_tried_again(
    file: OpenFile, direct: DirectWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = memoryview(bytes(SMALLEST_BYTES))
    now_s, step_s = 0.0, 1.0

    class OurTime:
        @staticmethod
        def monotonic() -> float:
            nonlocal now_s
            now_s += step_s
            return now_s

    monkeypatch.setattr(direct_module, "time", OurTime)
    written = [direct.write(file, data, 0) for _ in range(20)]
    assert written[0] == SMALLEST_BYTES
    assert written[-1] == 0
    step_s = 1e-6
    written = [direct.write(file, data, 0) for _ in range(WRITES_UNTIL_RETRY + 5)]
    assert written[-1] == SMALLEST_BYTES


def test_a_file_system_that_refuses_is_not_asked_again(
    file: OpenFile, direct: DirectWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def refuse(*_: object) -> int:
        nonlocal asked
        asked += 1
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "pwrite", refuse)
    data = memoryview(bytes(SMALLEST_BYTES))
    assert [direct.write(file, data, 0) for _ in range(5)] == [0] * 5
    assert asked == 1


def test_trouble_of_the_disk_is_raised(file: OpenFile, direct: DirectWrites, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="full"):
        direct.write(file, memoryview(bytes(SMALLEST_BYTES)), 0)


def test_a_tier_reads_what_was_written_in_both_ways(tmp_path: Path) -> None:
    size = 3 * BLOCK_BYTES + 123_457
    data = os.urandom(size)
    version = ObjectVersion("s3://b", "k", "e", size)
    tier = LocalTier.open(TierOptions("ssd", tmp_path / "tier", 64 * BLOCK_BYTES, 0.0), FifoPolicy())
    try:
        tier.write(version, 64 * KIB, data[64 * KIB : 96 * KIB])
        assert tier.read(version, 64 * KIB, 32 * KIB) == data[64 * KIB : 96 * KIB]
        tier.write(version, 0, data[: BLOCK_BYTES + 512 * KIB])
        tier.write(version, BLOCK_BYTES + 512 * KIB, data[BLOCK_BYTES + 512 * KIB :])
        assert tier.missing(version, 0, size) == []
        assert tier.read(version, 0, size) == data
        tier.validate()
    finally:
        tier.close()


@pytest.mark.parametrize("folder", ["disk", "tmpfs"])
def test_reads_what_is_there_wherever_the_file_is(folder: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if folder == "tmpfs" else tmp_path) as place:
        file = OpenFile(Path(place) / "file", os.O_CREAT)
        data = os.urandom(SMALLEST_BYTES * 2 + 77)
        file.write_at([data], 0)  # dirty in the page cache, if there is one
        reads = DirectReads(Path(place))
        direct = reads.open(file)
        assert (direct is None) or folder == "disk"
        for offset, size in ((0, len(data)), (4096, SMALLEST_BYTES), (100, SMALLEST_BYTES), (0, SMALLEST_BYTES + 5)):
            assert reads.read(file, direct, offset, size) == memoryview(data)[offset : offset + size]
        assert reads.read(file, direct, SMALLEST_BYTES, BUFFER_BYTES) == memoryview(data)[SMALLEST_BYTES:]
        assert reads.read(file, direct, 0, SMALLEST_BYTES - 1) is None
        assert reads.read(file, direct, 0, BUFFER_BYTES + 1) is None


def test_reads_the_usual_way_where_it_turns_out_to_be_impossible(
    file: OpenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(SMALLEST_BYTES)
    file.write_at([data], 0)
    reads = DirectReads(tmp_path)
    direct = reads.open(file)
    really = os.preadv

    def refuse(fd: int, buffers: list[memoryview], offset: int) -> int:
        if direct is not None and fd == direct.fd:
            raise OSError(errno.EINVAL, "no direct reads here")
        return really(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    assert reads.read(file, direct, 0, SMALLEST_BYTES) == memoryview(data)
    assert direct is None or reads.open(file) is None
