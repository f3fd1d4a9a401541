"""The records' server killed, back, and stepping down while files are written: bounded errors, and nothing acked is lost."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pymongo.errors

from forebay.cache.write.records.mongo import MongoRecords
from forebay.errors import MetadataUnavailable
from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tests.support.servers import free_ports, mongo_server, start_mongod, stop, wait_until_ready
from forebay.tests.support.write_lab import Lab

TIMEOUT_S = 3.0


async def started(folder: Path, bucket: MultipartBucket, url: str, **options: Any) -> Lab:
    records = await asyncio.to_thread(MongoRecords, url, "away", timeout_s=TIMEOUT_S)
    return await Lab.start(folder / "tier", bucket, records=records, **{"lease_s": 60.0, **options})


async def test_mongod_is_killed_and_back_while_files_are_written(tmp_path: Path) -> None:
    bucket = MultipartBucket()
    with mongo_server(tmp_path / "mongod") as server:
        lab = await started(tmp_path, bucket, server.url)
        acked: dict[bytes, bytes] = {}
        failed = 0

        def write(number: int) -> bool:
            """Whether it was acked, within the bound."""
            name, data = b"f%d" % number, b"%d" % number * 20_000
            began = time.monotonic()
            try:
                lab.write(name, data)
            except MetadataUnavailable:
                assert time.monotonic() - began < 3 * TIMEOUT_S + 20
                return False
            acked[name] = data
            return True

        assert [await asyncio.to_thread(write, number) for number in range(5)] == [True] * 5
        stop(server.process)
        began = time.monotonic()
        for number in range(5, 9):
            failed += not await asyncio.to_thread(write, number)
        assert failed == 4
        # One waits for the whole deadline; those behind it only for what a server needs that is there.
        assert time.monotonic() - began < 4 * (TIMEOUT_S + 10)
        assert await lab.read(b"f1") == acked[b"f1"]
        server.process = start_mongod(server.folder, server.port)
        for number in itertools.count(9):
            if await asyncio.to_thread(write, number):
                break
            assert number < 60, "mongod is back, and nothing is acked"
        await lab.side.flush(timeout_s=120)
        found = {name.encode(): data for name, data in bucket.contents().items()}
        # What failed may be there (its commit was applied, and the answer lost), or there empty (only its creation was).
        assert {name: found[name] for name in acked} == acked
        with lab.side.ledger.locked() as state:
            state.validate()
        await lab.end()


@contextlib.contextmanager
def replica_set(folder: Path) -> Iterator[str]:
    """Three members on one machine; the URL of all."""
    ports = free_ports(3)
    processes = [start_mongod(folder / str(port), port, replica_set="rs3") for port in ports]
    members = [{"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(ports)]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    url = f"mongodb://{hosts}/?replicaSet=rs3"

    def ready() -> bool:
        with pymongo.MongoClient[dict[str, Any]](
            "127.0.0.1", ports[0], directConnection=True, serverSelectionTimeoutMS=500
        ) as client:
            try:
                with contextlib.suppress(pymongo.errors.OperationFailure):
                    client.admin.command("replSetInitiate", {"_id": "rs3", "members": members})
                states = [member["stateStr"] for member in client.admin.command("replSetGetStatus")["members"]]
            except pymongo.errors.PyMongoError:
                return False
            return sorted(states) == ["PRIMARY", "SECONDARY", "SECONDARY"]

    try:
        wait_until_ready(processes[0], ready, folder / str(ports[0]) / "mongod.log", "replica set")
        yield url
    finally:
        for process in processes:
            stop(process)


async def test_the_primary_steps_down_while_files_are_written(tmp_path: Path) -> None:
    bucket = MultipartBucket()
    with replica_set(tmp_path / "set") as url:
        records = await asyncio.to_thread(MongoRecords, url, "away", timeout_s=60.0)
        lab = await Lab.start(tmp_path / "tier", bucket, records=records, lease_s=120.0)
        acked: dict[bytes, bytes] = {}

        def write(count: int) -> None:
            for number in range(len(acked), len(acked) + count):
                lab.write(b"f%d" % number, b"%d" % number)
                acked[b"f%d" % number] = b"%d" % number

        await asyncio.to_thread(write, 20)
        writing = asyncio.create_task(asyncio.to_thread(write, 60))
        # The one that steps down may close the connection before it answers.
        with pymongo.MongoClient[dict[str, Any]](url) as client, contextlib.suppress(pymongo.errors.AutoReconnect):
            client.admin.command("replSetStepDown", 60, secondaryCatchUpPeriodSecs=10)
        await writing
        await lab.side.flush(timeout_s=120)
        assert {name.encode(): data for name, data in bucket.contents().items()} == acked
        await lab.end()
