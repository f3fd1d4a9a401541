"""Versions of a real bucket, mounted: SnapshotSource, the real cache and the real mount, in this process."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.block_cache import BlockCache
from forebay.cache.pins import Pins
from forebay.cache.tier_set import TierSet
from forebay.config import Settings
from forebay.daemon.snapshot_source import SnapshotSource
from forebay.daemon.sources import SourceName
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import Mount, mount
from forebay.snapshots import Repository, open_repository
from forebay.tests.support.fault_proxy import FaultProxy, fault_proxy
from forebay.tests.support.fuse import clear, need_fuse
from forebay.tests.support.servers import S3Server
from forebay.tiers.local import TierOptions


@dataclass
class Mounted:
    """A mounted version."""

    path: Path
    source: SnapshotSource
    mount: Mount


class Lab:
    """One bucket behind a proxy that counts requests, one metadata store, and one cache folder for all mounts."""

    def __init__(self, server: S3Server, proxy: FaultProxy, folder: Path, meta_url: str) -> None:
        self.server = server
        self.proxy = proxy
        self.folder = folder
        self.bucket = server.new_bucket("mounted")
        self.client = server.client()
        self.store = f"s3://{self.bucket}@{proxy.url.removeprefix('http://')}"
        self.repository: Repository = open_repository(meta_url)
        self.settings = Settings(
            cache_dir=(folder / "cache",),
            endpoint_url=proxy.url,
            meta_url=meta_url,
            io_timeout=60.0,
        )

    def put(self, contents: Mapping[str, bytes]) -> dict[str, str | None]:
        """Write objects below `in/`; returns their version ids."""
        return {
            path: self.client.put_object(Bucket=self.bucket, Key=f"in/{path}", Body=data).get("VersionId")
            for path, data in contents.items()
        }

    def import_version(
        self,
        contents: Mapping[str, bytes],
        *,
        dataset: str = "pets",
        labels: Mapping[str, Any] | None = None,
        version_ids: Mapping[str, str | None] | None = None,
    ) -> str:
        """Make a version of objects that were put; returns its name."""
        lines = [
            {
                "url": f"s3://{self.bucket}/in/{path}", "store": self.store, "path": path, "size": len(data),
                "etag": hashlib.md5(data).hexdigest(), "labels": (labels or {}).get(path),
                "versionId": (version_ids or {}).get(path),
            }
            for path, data in contents.items()
        ]  # fmt: skip
        manifest = self.folder / "manifest.jsonl"
        manifest.write_text(
            "".join(json.dumps({k: v for k, v in line.items() if v is not None}) + "\n" for line in lines)
        )
        self.repository.ensure_dataset(dataset)
        return self.repository.import_manifest(dataset, manifest).made.snapshot.version_name

    @contextlib.asynccontextmanager
    async def mounted(self, name: str, *, by_label: str | None = None) -> AsyncIterator[Mounted]:
        """Mount a version on the one cache."""
        settings = replace(self.settings, by_label=by_label)
        path = self.folder / "mnt"
        path.mkdir(exist_ok=True)
        source = await SnapshotSource.open(SourceName(name, "pets"), settings, what=f"the mount at {path}")
        try:
            pins = Pins.open(self.folder / "pins")
            tier = TierOptions(name="ssd", folder=self.folder / "ssd", capacity_bytes=1 << 28, free_space_ratio=0.0)
            tiers = TierSet.open(None, [tier], pinned=pins.is_pinned)
            async with BlockCache(tiers, source.stores, pins=pins) as cache:
                options = MountOptions(io_timeout_s=60)
                async with await mount(source.view, cache, path, source=name, options=options) as served:
                    yield Mounted(path, source, served)
        finally:
            await source.close()
            clear(path)


@pytest.fixture
def meta_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/meta.db"


@pytest.fixture
def lab(s3: S3Server, meta_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    need_fuse()
    for variable, value in s3.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    with fault_proxy(s3.endpoint_url) as proxy:
        made = Lab(s3, proxy, tmp_path, meta_url)
        yield made
        made.repository.close()
