"""What every durable tier must do, whatever it is made of."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.errors import DirtyDataMissing
from forebay.tests.support.ceph import CephCluster
from forebay.tiers.durable import DurableTier, FolderTier
from forebay.tiers.durable.rados import RadosTier


@pytest.fixture(params=["folder", "rados"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DurableTier]:
    made: DurableTier
    if request.param == "folder":
        made = FolderTier.at(tmp_path / "tier", free_space_ratio=0.0)
    else:
        ceph: CephCluster = request.getfixturevalue("ceph")
        made = RadosTier(request.getfixturevalue("shared_pool"), conf=ceph.conf, keyring=ceph.keyring, timeout_s=60)
    yield made
    for name in list(made.names()):
        made.delete(name)
    made.close()


def test_what_was_written_is_read_back_at_its_offset(tier: DurableTier) -> None:
    file = tier.create("w1-1")
    file.write(0, b"abc")
    file.write(10, memoryview(b"xyz"))
    file.write(1, bytearray(b"B"))
    assert bytes(file.read(0, 13)) == b"aBc" + bytes(7) + b"xyz"
    file.close()


def test_reads_beyond_the_end_and_in_holes_give_zeros(tier: DurableTier) -> None:
    file = tier.create("w1-1")
    file.write(9 * 1024 * 1024, b"end")
    assert bytes(file.read(5 * 1024 * 1024, 4096)) == bytes(4096)
    assert bytes(file.read(9 * 1024 * 1024 + 1, 8)) == b"nd" + bytes(6)
    assert bytes(file.read(1 << 40, 3)) == bytes(3)
    file.close()


def test_truncated_bytes_do_not_come_back(tier: DurableTier) -> None:
    file = tier.create("w1-1")
    file.write(0, b"x" * (9 * 1024 * 1024))
    file.truncate(100)
    file.write(5 * 1024 * 1024, b"y")
    assert bytes(file.read(90, 20)) == b"x" * 10 + bytes(10)
    assert bytes(file.read(5 * 1024 * 1024 - 1, 3)) == b"\0y\0"
    file.truncate(0)
    assert bytes(file.read(0, 5)) == bytes(5)
    file.close()


def test_a_synced_file_is_found_again_under_its_name(tier: DurableTier) -> None:
    file = tier.create("w1-1")
    file.write(0, b"kept")
    file.sync()
    file.close()
    file.close()
    again = tier.open("w1-1")
    assert again.name == "w1-1"
    assert bytes(again.read(0, 4)) == b"kept"
    again.sync()
    again.close()


def test_names_are_those_not_deleted(tier: DurableTier) -> None:
    for name in ("w1-1", "w1-2", "w2.x"):
        file = tier.create(name)
        file.write(0, b"x" * (5 * 1024 * 1024))
        file.sync()
        file.close()
    tier.delete("w1-2")
    tier.delete("never-was")
    assert sorted(tier.names()) == ["w1-1", "w2.x"]


def test_a_missing_data_file_is_an_error_of_its_own(tier: DurableTier) -> None:
    with pytest.raises(DirtyDataMissing, match="w1-9"):
        tier.open("w1-9")


def test_a_deleted_file_stays_readable_or_fails_but_never_lies(tier: DurableTier) -> None:
    tier.create("w1-1").close()
    tier.delete("w1-1")
    assert list(tier.names()) == []


def test_room_is_sensible(tier: DurableTier) -> None:
    room = tier.room()
    assert 0 <= room.free_bytes <= room.total_bytes
    assert room.total_bytes > 0
    assert tier.label


def test_threads_write_their_ranges_at_once(tier: DurableTier) -> None:
    file = tier.create("w1-1")
    piece = 700_001

    def write(index: int) -> None:
        file.write(index * piece, bytes([index + 1]) * piece)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.sync()
    for index in range(12):
        assert bytes(file.read(index * piece, piece)) == bytes([index + 1]) * piece
    file.close()


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 9_000_000), st.integers(1, 3_000_000)),
    st.tuples(st.just("truncate"), st.integers(0, 12_000_000), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0), st.just(0)),
)
_unique = iter(range(1_000_000))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=8), seed=st.integers(0, 1000))
def test_random_writes_and_truncations_match_a_bytearray(
    tier: DurableTier, steps: list[tuple[str, int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    size = 12_500_000
    model = bytearray(size)
    name = f"p-{next(_unique)}"
    file = tier.create(name)
    for action, offset, length in steps:
        if action == "write":
            data = rng.randbytes(length)
            file.write(offset, data)
            model[offset : offset + length] = data
        elif action == "truncate":
            file.truncate(offset)
            model[offset:] = bytes(size - offset)
        else:
            file.sync()
            file.close()
            file = tier.open(name)
    assert bytes(file.read(0, size)) == bytes(model)
    file.close()
    tier.delete(name)
