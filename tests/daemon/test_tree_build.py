"""The process that builds a tree index ends in order, although a thread of it waits for its parent to go."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from forebay.daemon.tree_build import TreeRequest
from forebay.snapshots import Entry, batch_of, open_repository
from forebay.snapshots.tree_index import Layout
from forebay.snapshots.tree_index_store import TreeIndexStore
from forebay.tiers.version import ObjectVersion


@pytest.mark.parametrize("times", range(3))
def test_a_small_index_is_built_and_nothing_is_complained_of(tmp_path: Path, times: int) -> None:
    url = f"sqlite:///{tmp_path}/meta.db"
    with open_repository(url) as repository:
        repository.ensure_dataset("pets")
        entries = [Entry(f"{i:03}", ObjectVersion("s3://b", f"{i:03}", "e", i)) for i in range(10)]
        commit = repository.create("pets", [batch_of(entries)]).snapshot.commit
    request = TreeRequest(
        meta_url=url, trees=str(tmp_path / "trees"), commit=commit.id.hex(), root=commit.root.hex(), commit_time_ns=1
    )
    command = [sys.executable, "-m", "forebay.daemon.tree_build"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(msgspec.json.encode(request) + b"\n")
        child.stdin.flush()
        # Its stdin stays open until it has ended, as the process behind a mount keeps it.
        assert msgspec.json.decode(child.stdout.read().splitlines()[-1]) == {"built": True}
        assert (child.wait(timeout=120), child.stderr.read()) == (0, b"")
    opened = TreeIndexStore(tmp_path / "trees").open(commit.id.hex(), Layout(None))
    assert opened is not None
    opened.close()
