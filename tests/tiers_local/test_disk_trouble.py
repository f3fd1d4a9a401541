"""Full, read-only and failing disks: readers never see an exception, writers get TierFull or TierFailed, accounts hold."""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import TierError, TierFailed, TierFull
from forebay.tests.tiers_local import disks
from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tests.tiers_local.policies import RandomPolicy
from forebay.tiers.local import LocalTier, TierOptions
from forebay.tiers.local.extent_files import BLOCK_ENTRIES_BYTES
from forebay.tiers.local.files import OpenFile
from forebay.tiers.version import ObjectVersion

MIB = 1024 * 1024
SIZES = [3000, 60_000, 110_000, 2 * MIB + 5, 5 * MIB]


def versions(count: int) -> list[ObjectVersion]:
    return [version_of(f"k{i}", SIZES[i % len(SIZES)]) for i in range(count)]


def open_tier(folder: Path, capacity_bytes: int = 64 * MIB, ratio: float = 0.0) -> LocalTier:
    options = TierOptions("ssd", folder, capacity_bytes, free_space_ratio=ratio, probe_interval_s=0.05)
    return LocalTier.open(options, RandomPolicy())


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[LocalTier]:
    opened = open_tier(tmp_path / "tier")
    yield opened
    opened.close()


def fill(tier: LocalTier, names: list[ObjectVersion]) -> list[TierError]:
    """Write all; what was refused."""
    refused = []
    for version in names:
        try:
            tier.write(version, 0, content_of(version))
        except TierError as error:
            refused.append(error)
    return refused


def check(tier: LocalTier, names: list[ObjectVersion]) -> int:
    """All reads are right or a miss; how many objects are there."""
    whole = 0
    for version in names:
        found = tier.read(version, 0, version.size)
        assert found is None or found == content_of(version)
        whole += found is not None
    return whole


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_disk_smaller_than_the_capacity_is_used_and_not_overrun(tmp_path: Path) -> None:
    with disks.tmpfs(tmp_path / "disk", 24 * MIB) as folder:
        tier = open_tier(folder)
        names = versions(60)
        assert fill(tier, names) == []
        assert tier.stats().evicted > 0
        assert check(tier, names) > 5
        tier.validate()
        tier.close()


def test_the_free_space_ratio_holds(tmp_path: Path) -> None:
    with disks.tmpfs(tmp_path / "disk", 64 * MIB) as folder:
        tier = open_tier(folder, ratio=0.5)
        for version in versions(60):
            tier.write(version, 0, content_of(version))
            assert disks.taken_bytes(folder) <= 32 * MIB
        assert disks.taken_bytes(folder) > 24 * MIB
        tier.validate()
        tier.close()


def test_a_disk_filled_by_others_makes_the_tier_give_way(tmp_path: Path) -> None:
    with disks.tmpfs(tmp_path / "disk", 64 * MIB) as folder:
        tier = open_tier(folder / "tier")
        names = versions(40)
        assert fill(tier, names) == []
        with (folder / "others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(MIB)):
                pass  # until the disk is full
        more = [version_of(f"more{i}", SIZES[i % len(SIZES)]) for i in range(10)]
        refused = fill(tier, more)
        assert all(isinstance(error, TierFull) for error in refused)
        check(tier, names + more)
        tier.validate()
        (folder / "others").unlink()
        wait_until(lambda: fill(tier, more) == [])
        assert check(tier, more) == len(more)
        assert tier.stats().writable
        tier.close()


def test_a_read_only_disk_still_serves_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with disks.tmpfs(tmp_path / "disk", 64 * MIB) as folder:
        tier = open_tier(folder)
        names = versions(5)
        fill(tier, names)
        # Files that are open for writing would keep the remount from happening; on a failing disk the kernel does not ask.
        tier._files.close()
        tier._slabs.close()
        table = tier._block_slots._file
        read_only = os.open(table.path, os.O_RDONLY)
        os.dup2(read_only, table.fd)
        os.close(read_only)
        table.writable = False
        disks.remount(folder, "ro")
        caplog.clear()
        more = [version_of(f"more{i}", 2 * MIB) for i in range(5)]
        refused = fill(tier, more)
        assert len(refused) == 5
        assert all(isinstance(error, TierFailed) for error in refused)
        assert not tier.stats().writable
        assert "Read-only" in (tier.stats().reason or "")
        assert check(tier, names) == len(names)
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1, "trouble is logged once"
        disks.remount(folder, "rw")
        wait_until(lambda: fill(tier, more) == [])
        assert tier.stats().writable
        assert check(tier, names + more) == len(names + more)
        assert "in service again" in caplog.text
        tier.validate()
        tier.close()


def test_too_few_inodes_make_the_tier_remove_files(tmp_path: Path) -> None:
    with disks.tmpfs(tmp_path / "disk", 256 * MIB, inodes=200) as folder:
        tier = open_tier(folder, capacity_bytes=128 * MIB, ratio=0.1)
        names = [version_of(f"k{i}", MIB + 1) for i in range(100)]
        refused = fill(tier, names)
        assert len(refused) < 10
        assert all(isinstance(error, TierFull) for error in refused)
        stat = os.statvfs(folder)
        assert stat.f_favail >= 0.1 * stat.f_files - 2
        assert check(tier, names) > 20
        assert tier.stats().evicted > 10
        tier.validate()
        tier.close()


class FailingIO:
    """Makes one kind of I/O of tiers fail with an errno from a given call on, for a given number of calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, start: int, count: int) -> None:
        self.calls = 0
        self.failed = 0
        self._number, self._start, self._count = number, start, count
        for name in ("write_at", "punch"):
            monkeypatch.setattr(OpenFile, name, self._wrap(getattr(OpenFile, name)))

    def _wrap(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(file: OpenFile, *args: Any) -> None:
            self.calls += 1
            if self._start <= self.calls < self._start + self._count:
                self.failed += 1
                raise OSError(self._number, os.strerror(self._number), str(file.path))
            real(file, *args)

        return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("start", range(1, 30, 3))
def test_any_write_or_punch_may_fail(tier: LocalTier, monkeypatch: pytest.MonkeyPatch, number: int, start: int) -> None:
    names = versions(10)
    with monkeypatch.context() as patched:
        failing = FailingIO(patched, number, start, 2)
        for version in names:
            if fill(tier, [version]) == [] and tier.stats().readable:
                assert tier.read(version, 0, version.size) == content_of(version)
            tier.drop(names[0])
        assert failing.failed
    check(tier, names)
    tier._space.refresh()  # an ENOSPC is believed until then, and makes the tier give way
    wait_until(lambda: fill(tier, names) == [])
    assert check(tier, names) == len(names)
    tier.validate()
    for version in names:
        tier.drop(version)
    tier.validate()
    assert tier.stats().entries == 0


def test_io_errors_while_evicting_do_not_reach_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path / "tier", capacity_bytes=16 * MIB)
    names = versions(20)
    fill(tier, names)
    real = OpenFile.punch

    def punch(file: OpenFile, offset: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file.path))

    monkeypatch.setattr(OpenFile, "punch", punch)
    more = [version_of(f"more{i}", SIZES[i % len(SIZES)]) for i in range(20)]
    fill(tier, more)
    check(tier, names + more)
    monkeypatch.setattr(OpenFile, "punch", real)
    wait_until(lambda: fill(tier, more) == [])
    check(tier, names + more)
    tier.validate()
    assert tier.stats().used_bytes <= 16 * MIB
    tier.close()


def test_read_errors_are_misses_and_many_take_the_tier_out(tier: LocalTier, monkeypatch: pytest.MonkeyPatch) -> None:
    names = versions(5)
    fill(tier, names)
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if size > BLOCK_ENTRIES_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", pread)
        assert tier.read(names[3], 0, 100_000) is None
        assert tier.stats().readable, "one bad sector is not a bad disk"
        assert tier.missing(names[3], 0, 100_000), "what cannot be read is to be fetched again"
        assert tier.read(names[1], 0, 60_000) is None
        assert tier.missing(names[1], 0, 60_000)
        for _ in range(10):
            assert fill(tier, names) == []
            for version in names[1:]:
                assert tier.read(version, 0, 100_000) is None
            if not tier.stats().readable:
                break
        assert not tier.stats().readable, "but many are"
    wait_until(lambda: fill(tier, names) == [])
    assert check(tier, names) == len(names)
    tier.validate()


def test_while_out_of_service_everything_is_a_miss(tier: LocalTier, monkeypatch: pytest.MonkeyPatch) -> None:
    names = versions(5)
    fill(tier, names)
    with monkeypatch.context() as patched:
        FailingIO(patched, errno.EIO, 1, 10_000)
        patched.setattr(tier._health, "try_disk", lambda: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(TierFailed, match="out of service: Input/output error"):
            tier.write(version_of("new", 1000), 0, content_of(version_of("new", 1000)))
        for version in names:
            assert tier.read(version, 0, 10) is None
            assert tier.missing(version, 0, version.size) == [(0, version.size)]
            assert tier.cached_bytes(version) == 0
            tier.readahead(version, 0, 10)
            with pytest.raises(TierFailed):
                tier.write(version, 0, content_of(version))
    wait_until(lambda: tier.read(names[0], 0, 10) is not None)
    assert check(tier, names) == len(names)
    tier.validate()
