"""MongoDB goes away under a mounted version: reading goes on, unmounting does not hang, and the lease outlives the outage."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.snapshots import Repository
from forebay.snapshots.holds import RELEASE_TIMEOUT_S
from forebay.tests.snapshot_mount.conftest import Lab
from forebay.tests.snapshot_mount.test_snapshot_mount import V7, blocking, files_below
from forebay.tests.support.servers import MongoServer, mongo_server, start_mongod, stop


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MongoServer]:
    with mongo_server(tmp_path / "mongod") as running:
        yield running


@pytest.fixture
def meta_url(server: MongoServer) -> str:
    return server.url


async def test_a_mount_goes_on_and_its_lease_is_there_after_the_outage(
    lab: Lab, server: MongoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Repository.hold.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "ttl_s", 4.0)
    lab.put(V7)
    name = lab.import_version(V7)
    async with lab.mounted(name) as mounted:
        (lease,) = lab.repository.leases()
        server.process.kill()
        server.process.wait()
        assert await blocking(lambda: files_below(mounted.path)) == V7
        server.process = start_mongod(server.folder, server.port)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            found = lab.repository.leases()
            # Renewed (or, if it lapsed meanwhile, taken anew) after the restart.
            if found and found[0].id == lease.id and found[0].expires_ms > lease.expires_ms:
                break
            await blocking(lambda: time.sleep(0.2))
        assert [one.id for one in lab.repository.leases()] == [lease.id]
    assert lab.repository.leases() == []


async def test_unmounting_does_not_wait_for_a_server_that_is_away(lab: Lab, server: MongoServer) -> None:
    lab.put(V7)
    name = lab.import_version(V7)
    async with lab.mounted(name) as mounted:
        stop(server.process)
        assert await blocking(lambda: files_below(mounted.path)) == V7
        began = time.monotonic()
    assert time.monotonic() - began < 2 * RELEASE_TIMEOUT_S + 20
