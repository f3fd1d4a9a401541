"""Large writes of a folder tier: nothing is out of order, lost, or said to be durable when it is not."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.errors import TierFull
from forebay.tiers.durable import FolderTier
from forebay.tiers.durable.folder import LARGE_WRITE_BYTES
from forebay.tiers.durable.write_behind import BUFFER_BYTES, BUFFERS

KIB = 1024


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[FolderTier]:
    tier = FolderTier.at(tmp_path, free_space_ratio=0.0)
    yield tier
    tier.close()


def test_more_than_all_buffers_hold_arrives_in_order(tier: FolderTier, tmp_path: Path) -> None:
    file = tier.create("a-1")
    pieces = 3 * BUFFERS
    for index in range(pieces):
        file.write(index * BUFFER_BYTES, bytes([index]) * BUFFER_BYTES)
    file.sync()
    (path,) = (tmp_path / "data").glob("*/a-1")
    assert path.read_bytes() == b"".join(bytes([index]) * BUFFER_BYTES for index in range(pieces))
    file.close()


def test_the_same_place_written_again_and_again_holds_the_last(tier: FolderTier) -> None:
    file = tier.create("a-1")
    for index in range(100):
        file.write(0, bytes([index]) * LARGE_WRITE_BYTES)
        file.write(5, bytes([index + 100]))  # through the page cache
    assert file.read(0, 8) == bytes([99] * 5 + [199] + [99] * 2)
    file.close()


writes = st.lists(
    st.tuples(
        st.integers(0, 600 * KIB), st.integers(1, 400 * KIB), st.sampled_from(["write", "read", "truncate", "sync"])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes, st.booleans())
def test_large_and_small_writes_mix(tier: FolderTier, operations: list[tuple[int, int, str]], aligned: bool) -> None:
    name = f"a-{os.urandom(8).hex()}"
    file = tier.create(name)
    model = bytearray()
    for number, (offset, size, what) in enumerate(operations, 1):
        if aligned:
            offset, size = offset // 4096 * 4096, -(-size // 4096) * 4096
        if what == "truncate":
            file.truncate(offset)
            del model[offset:]
        elif what == "read":
            expected = bytes(model[offset : offset + size])
            assert file.read(offset, size) == expected.ljust(size, b"\0")
        elif what == "sync":
            file.sync()
        else:
            file.write(offset, bytes([number]) * size)
            model.extend(bytes(max(offset + size - len(model), 0)))
            model[offset : offset + size] = bytes([number]) * size
    file.sync()
    file.close()
    again = tier.open(name)
    assert again.read(0, len(model) + 1) == bytes(model) + b"\0"
    again.close()


def test_a_failure_that_nobody_saw_fails_every_later_sync(tier: FolderTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, buffers: Sequence[object], offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tier.create("a-1")
    file.write(0, bytes(LARGE_WRITE_BYTES))
    file.sync()
    monkeypatch.setattr(os, "pwritev", full)
    file.write(0, b"x" * LARGE_WRITE_BYTES)
    with pytest.raises(TierFull):
        file.sync()
    monkeypatch.undo()
    with pytest.raises(TierFull):
        file.sync()
    file.close()


def test_without_direct_writes_the_page_cache_takes_them(tier: FolderTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fd: int, buffers: Sequence[object], offset: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwritev", refused)
    file = tier.create("a-1")
    file.write(0, b"x" * LARGE_WRITE_BYTES)
    file.sync()
    assert file.read(0, LARGE_WRITE_BYTES) == b"x" * LARGE_WRITE_BYTES
    file.close()


def test_the_threads_end_with_the_tier(tmp_path: Path) -> None:
    tier = FolderTier.at(tmp_path)
    file = tier.create("a-1")
    file.write(0, bytes(LARGE_WRITE_BYTES))
    file.close()
    tier.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forebay-write-behind")]
