"""Stores to test: one of every kind, on real servers, each with a fresh root."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from forebay.tests.support.fault_proxy import FaultProxy, fault_proxy
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.understore import UnderStore


@pytest.fixture
def aws_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials by environment, and no config files of whoever runs the tests."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture(params=["s3", "file", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UnderStore]:
    """An empty store of each kind."""
    match request.param:
        case "s3":
            server: S3Server = request.getfixturevalue("s3")
            request.getfixturevalue("aws_environment")
            url = f"s3://{server.new_bucket('stores')}"
        case "file":
            (tmp_path / "root").mkdir()
            url = (tmp_path / "root").as_uri()
        case _:
            import fsspec

            url = f"memory://{uuid.uuid4().hex}"
            fsspec.filesystem("memory").mkdir(url.removeprefix("memory://"))
    opened, _ = open_store(url, StoreOptions(timeout_s=60))
    yield opened
    await opened.close()


@pytest.fixture
def proxy(s3: S3Server, aws_environment: None) -> Iterator[FaultProxy]:
    with fault_proxy(s3.endpoint_url) as running:
        yield running
