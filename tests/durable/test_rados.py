"""What is special about Ceph as write tier: lost OSDs, a full pool, a silent monitor."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from forebay.errors import DirtyDataMissing, TierFailed, TierFull
from forebay.tests.support.ceph import CephCluster
from forebay.tiers.durable.rados import PIECE_BYTES, RadosTier

MIB = 1024 * 1024


@pytest.fixture
def tier(ceph: CephCluster, shared_pool: str) -> Iterator[RadosTier]:
    tier = RadosTier(shared_pool, conf=ceph.conf, keyring=ceph.keyring, timeout_s=60)
    yield tier
    for name in list(tier.names()):
        tier.delete(name)
    tier.close()


def test_a_pool_that_is_not_there_is_named(ceph: CephCluster) -> None:
    with pytest.raises(TierFailed, match="rados pool nowhere"):
        RadosTier("nowhere", conf=ceph.conf, keyring=ceph.keyring)


def test_what_was_synced_survives_the_loss_of_an_osd_while_writing(ceph: CephCluster, tier: RadosTier) -> None:
    synced: dict[str, int] = {}
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(100_000):
                if stop.is_set():
                    return
                file = tier.create(f"w1-{number}")
                file.write(0, random.Random(number).randbytes(5 * MIB))
                file.sync()
                file.close()
                synced[f"w1-{number}"] = number
        except BaseException as error:
            failures.append(error)

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 180
        while len(synced) < count and not failures and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(synced) >= count, failures

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(3)
        ceph.kill_osd(0)
        ceph.wait_for_osds(1)
        wait_for(len(synced) + 3)
    finally:
        stop.set()
        writer.join()
        alone = dict(synced)
        for name, number in alone.items():
            file = tier.open(name)
            assert file.read(0, 5 * MIB) == random.Random(number).randbytes(5 * MIB)
            file.close()
        ceph.start_osd(0)
        ceph.wait_for_osds(2)
    assert not failures
    assert len(alone) >= 6
    assert sorted(tier.names()) == sorted(synced)


def test_a_full_pool_refuses_and_keeps_what_was_acked(ceph: CephCluster, pool: str) -> None:
    tier = RadosTier(pool, conf=ceph.conf, keyring=ceph.keyring, timeout_s=60)
    kept = tier.create("w1-kept")
    kept.write(0, b"k" * (8 * MIB))
    kept.sync()
    ceph.ceph("osd", "pool", "set-quota", pool, "max_bytes", str(16 * MIB))
    file = tier.create("w1-more")
    with pytest.raises(TierFull, match=f"rados pool {pool} is full"):
        fill(file)
    with pytest.raises(TierFull):
        file.sync()  # what failed once never succeeds afterwards
    assert kept.read(0, 8 * MIB) == b"k" * (8 * MIB)
    file.close()
    kept.close()
    tier.delete("w1-more")
    assert list(tier.names()) == ["w1-kept"]
    tier.close()


def fill(file: object) -> None:
    """Grow the file until the pool notices: the manager counts every few seconds, and what adds nothing is still let through."""
    assert hasattr(file, "write")
    assert hasattr(file, "sync")
    deadline = time.monotonic() + 180
    offset = 0
    while time.monotonic() < deadline:
        file.write(offset, b"x" * (4 * MIB))
        file.sync()
        offset += 4 * MIB
        time.sleep(0.2)


def test_silent_osds_fail_a_write_in_bounded_time(ceph: CephCluster, shared_pool: str) -> None:
    tier = RadosTier(shared_pool, conf=ceph.conf, keyring=ceph.keyring, timeout_s=3)
    file = tier.create("w1-1")
    ceph.pause_osds()
    started = time.monotonic()
    try:
        with pytest.raises(TierFailed, match="ETIMEDOUT"):
            write_and_sync(file)
        assert time.monotonic() - started < 90
    finally:
        ceph.resume_osds()
    file.close()
    ceph.wait_for_osds(2)
    tier.close()


def write_and_sync(file: object) -> None:
    assert hasattr(file, "write")
    assert hasattr(file, "sync")
    file.write(0, b"x" * MIB)
    file.sync()


def test_a_silent_monitor_delays_nothing_that_is_open(ceph: CephCluster, tier: RadosTier) -> None:
    """Clients talk to OSDs directly; a new connection fails in bounded time."""
    file = tier.create("w1-1")
    file.write(0, b"x")
    file.sync()
    ceph.pause_mon()
    try:
        file.write(PIECE_BYTES - 1, b"yz")
        file.sync()
        assert file.read(PIECE_BYTES - 2, 4) == b"\0yz\0"
        with pytest.raises(TierFailed, match="cannot open rados pool"):
            RadosTier("shared", conf=ceph.conf, keyring=ceph.keyring, timeout_s=2)
    finally:
        ceph.resume_mon()
    file.close()
    ceph.wait_for_osds(2)


def test_a_file_that_another_process_deletes_is_no_hole(tier: RadosTier) -> None:
    file = tier.create("w1-deleted")
    file.write(0, b"x" * PIECE_BYTES)
    file.write(2 * PIECE_BYTES, b"y")
    file.sync()
    reader = tier.open("w1-deleted")
    assert bytes(reader.read(PIECE_BYTES, 4)) == bytes(4), "a hole"
    tier.delete("w1-deleted")
    with pytest.raises(DirtyDataMissing):
        reader.read(0, 4)
    reader.close()
    file.close()
