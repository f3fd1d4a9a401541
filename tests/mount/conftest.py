"""The end-to-end suite: the real command line, a real mount, a real S3 server behind the fault proxy."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest

from forebay.tests.support.command_line import CommandLine, command_line, need_fuse
from forebay.tests.support.fault_proxy import FaultProxy, fault_proxy
from forebay.tests.support.servers import MongoServer, S3Server

SECRET = "word-that-nobody-sees"


@dataclass
class Bucket:
    """A bucket behind the proxy. `truth` holds what was put, by key."""

    name: str
    client: Any
    proxy: FaultProxy
    truth: dict[str, bytes]

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        self.truth[key] = data

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)
        self.truth.pop(key, None)

    def fetches(self) -> int:
        """Requests for data since the last `proxy.forget()`."""
        return self.proxy.count("GET")


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3: S3Server, proxy: FaultProxy) -> Bucket:
    return Bucket(s3.new_bucket(), s3.client(), proxy, {})


@pytest.fixture
def forebay(tmp_path: Path, s3: S3Server, proxy: FaultProxy) -> Iterator[CommandLine]:
    """The command line, pointed at the proxy."""
    need_fuse()
    with command_line(tmp_path, {**s3.environment, "AWS_ENDPOINT_URL_S3": proxy.url}) as commands:
        yield commands


@pytest.fixture
def meta_url(mongo: MongoServer, tmp_path: Path) -> Iterator[str]:
    """A database of its own, with a user and a password in the URL."""
    database = f"mount-{os.getpid()}-{tmp_path.name}"[:60]
    with pymongo.MongoClient[dict[str, object]](mongo.url) as client:
        client[database].command("createUser", "writer", pwd=SECRET, roles=["readWrite"])
        parts = urlsplit(mongo.url)
        yield f"mongodb://writer:{SECRET}@{parts.netloc}/{database}?{parts.query}"
        client[database].command("dropAllUsersFromDatabase")
        client.drop_database(database)


@pytest.fixture
def shared(forebay: CommandLine, meta_url: str, tmp_path: Path) -> CommandLine:
    """The command line, with a metadata store and a write tier that every mount reaches."""
    forebay.environment["FOREBAY_META_URL"] = meta_url
    forebay.environment["FOREBAY_WRITE_TIER"] = str(tmp_path / "shared-tier")
    return forebay


def content(seed: int, size: int) -> bytes:
    """Bytes that differ everywhere and between seeds, so that what is misplaced does not match."""
    import random

    return random.Random(seed).randbytes(size)


def read_tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`, by path."""
    found = {}
    for folder, _, names in os.walk(root, onerror=_raise):
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def _raise(error: OSError) -> None:
    raise error
