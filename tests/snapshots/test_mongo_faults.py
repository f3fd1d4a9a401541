"""MongoDB killed, restarted, and its primary stepped down, under a repository that is at work."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pymongo
import pytest

from forebay.errors import MetadataUnavailable
from forebay.snapshots import Entry, Repository, batch_of, open_repository, puts
from forebay.tests.support.servers import MongoServer, free_ports, mongo_server, start_mongod, stop, wait_until_ready
from forebay.tiers.version import ObjectVersion


def rows(label: str, numbers: range) -> pa.RecordBatch:
    return batch_of([Entry(f"{i:05}", ObjectVersion("s3://b", f"{i:05}", label, i)) for i in numbers])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MongoServer]:
    with mongo_server(tmp_path / "mongod") as running:
        yield running


def test_a_killed_server_is_an_error_within_the_deadline(server: MongoServer) -> None:
    with open_repository(server.url, timeout_s=2) as repo:
        repo.create_dataset("d")
        server.process.kill()
        server.process.wait()
        started = time.monotonic()
        with pytest.raises(MetadataUnavailable, match=f"127.0.0.1:{server.port}") as caught:
            repo.resolve("d")
        assert time.monotonic() - started < 60
        assert "MongoDB runs" in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_restart_in_the_middle_of_an_import_is_ridden_out(server: MongoServer) -> None:
    with open_repository(server.url, timeout_s=90) as repo:
        repo.create_dataset("d")
        restarted = threading.Event()

        def restart() -> None:
            server.process.kill()
            server.process.wait()
            server.process = start_mongod(server.folder, server.port)
            restarted.set()

        def batches() -> Iterator[pa.RecordBatch]:
            for number in range(20):
                if number == 10:
                    restart()
                yield rows("a", range(number * 1000, (number + 1) * 1000))

        made = repo.create("d", batches())
        assert restarted.is_set()
        assert sum(batch.num_rows for batch in repo.resolve("d").batches()) == 20_000
        assert made.snapshot.number == 1


@pytest.fixture
def replica_set(tmp_path: Path) -> Iterator[tuple[str, pymongo.MongoClient[dict[str, Any]]]]:
    ports = free_ports(3)
    with contextlib.ExitStack() as stack:
        processes = [start_mongod(tmp_path / str(port), port, replica_set="three") for port in ports]
        for process in processes:
            stack.callback(stop, process)
        members = [{"_id": i, "host": f"127.0.0.1:{port}"} for i, port in enumerate(ports)]
        settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 500}

        def initiated() -> bool:
            client: pymongo.MongoClient[dict[str, Any]]
            with pymongo.MongoClient(
                "127.0.0.1", ports[0], directConnection=True, serverSelectionTimeoutMS=500
            ) as client:
                try:
                    client.admin.command("replSetInitiate", {"_id": "three", "members": members, "settings": settings})
                except pymongo.errors.OperationFailure as error:
                    return error.code == 23  # already initiated
                except pymongo.errors.PyMongoError:
                    return False
            return True

        wait_until_ready(processes[0], initiated, tmp_path / str(ports[0]) / "mongod.log", "mongod")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"mongodb://{hosts}/steps?replicaSet=three"
        client: pymongo.MongoClient[dict[str, Any]] = stack.enter_context(
            pymongo.MongoClient(url, serverSelectionTimeoutMS=60_000)
        )
        client.admin.command("ping")
        yield url, client


def test_stepping_down_the_primary_loses_and_doubles_nothing(
    replica_set: tuple[str, pymongo.MongoClient[dict[str, Any]]],
) -> None:
    url, client = replica_set
    step_downs = 0
    stopping = threading.Event()

    def step_down() -> None:
        nonlocal step_downs
        while not stopping.wait(2):
            try:
                client.admin.command("replSetStepDown", 2, secondaryCatchUpPeriodSecs=1, force=True)
                step_downs += 1
            except pymongo.errors.PyMongoError:
                continue  # an election is going on already

    with open_repository(url, timeout_s=120) as repo:
        repo.create_dataset("d")
        thread = threading.Thread(target=step_down)
        thread.start()
        try:
            number = 0
            deadline = time.monotonic() + 100
            while (step_downs < 2 or number < 10) and time.monotonic() < deadline:
                number += 1
                made = repo.edit("d", [puts(rows(f"e{number}", range(number, number + 3)))]).made
                assert made.snapshot.number == number
                assert made.snapshot.commit.entry_count == number + 2
        finally:
            stopping.set()
            thread.join()
        assert step_downs >= 2
        assert len(repo.versions("d")) == number
        log = list(Repository(repo.meta).log("d@main"))
        assert len(log) == number
        assert sum(batch.num_rows for batch in repo.resolve("d").batches()) == number + 2
