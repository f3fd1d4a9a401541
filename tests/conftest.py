"""Fixtures that every area shares: real servers, once per session and worker."""

from collections.abc import Iterator

import pytest

from forebay.tests.support.servers import MongoServer, S3Server, mongo_server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS); make a bucket of your own with `s3.new_bucket()`."""
    with s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """A real mongod (one-member replica set); use a database name of your own."""
    with mongo_server(tmp_path_factory.mktemp("mongod")) as server:
        yield server
