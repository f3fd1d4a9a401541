"""A metadata store of each kind, empty, for the tests of this folder."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.snapshots.meta_url import open_meta
from forebay.snapshots.metastore import MetaStore

_databases = itertools.count()


@pytest.fixture(params=["sqlite", "mongo"])
def meta_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store; every test that takes it runs on SQLite and on MongoDB."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'meta.db'}"
    server = request.getfixturevalue("mongo")
    base, _, options = server.url.partition("/?")
    return f"{base}/snapshots-{os.getpid()}-{next(_databases)}?{options}"


@pytest.fixture
def meta(meta_url: str) -> Iterator[MetaStore]:
    store = open_meta(meta_url)
    yield store
    store.close()


@pytest.fixture
def sqlite_meta(tmp_path: Path) -> Iterator[MetaStore]:
    store = open_meta(f"sqlite:///{tmp_path / 'meta.db'}")
    yield store
    store.close()
