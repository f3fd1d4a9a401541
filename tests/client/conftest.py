"""A bucket, and programs that read it through `forebay://` in this process, with a home of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forebay.client.filesystem import ForebayFileSystem
from forebay.tests.support.command_line import CommandLine, command_line
from forebay.tests.support.fault_proxy import FaultProxy, fault_proxy
from forebay.tests.support.servers import S3Server


@dataclass
class Reading:
    """The command line, the bucket, and the proxy through which everything is fetched."""

    forebay: CommandLine
    proxy: FaultProxy
    s3: S3Server
    bucket: str

    @property
    def url(self) -> str:
        return f"forebay://s3/{self.bucket}"

    def put(self, key: str, data: bytes) -> None:
        self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=data)


@pytest.fixture
def reading(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    with fault_proxy(s3.endpoint_url) as proxy:
        environment = {**s3.environment, "AWS_ENDPOINT_URL_S3": proxy.url, "FOREBAY_METADATA_TTL": "0"}
        with command_line(tmp_path, environment) as forebay:
            for name, value in forebay.environment.items():
                monkeypatch.setenv(name, value)
            ForebayFileSystem.clear_instance_cache()
            yield Reading(forebay, proxy, s3, s3.new_bucket())
            ForebayFileSystem.clear_instance_cache()
