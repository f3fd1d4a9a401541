"""kill -9 in the middle of `forebay snapshot gc --sweep`: what is left is whole, and the next sweep goes on."""

import subprocess
import sys
from pathlib import Path

from forebay.snapshots import open_repository
from forebay.snapshots.holds import page_ids
from forebay.tests.snapshot_commands.conftest import Forebay
from forebay.tests.snapshot_commands.test_history import COUNT, manifest

DELETED_BEFORE_THE_KILL = 2
# Dies by its own hand, so that the moment is exactly known: pages are deleted one by one, and after the second ...
KILLED_SWEEP = f"""
import os, signal, sys
from forebay import cli
from forebay.snapshots import gc, mongo, sqlite
gc._BATCH = 1
deleted = 0
def dying(delete):
    def one(self, ids):
        global deleted
        if deleted == {DELETED_BEFORE_THE_KILL}:
            os.kill(os.getpid(), signal.SIGKILL)
        deleted += 1
        return delete(self, ids)
    return one
for store in (mongo.MongoMetaStore, sqlite.SqliteMetaStore):
    store.delete_condemned = dying(store.delete_condemned)
sys.exit(cli.main(["snapshot", "gc", "--sweep", "--grace", "0s"]))
"""


def test_a_sweep_that_is_killed_is_gone_on_with(forebay: Forebay, meta_url: str, tmp_path: Path) -> None:
    forebay("dataset", "import", "kept", manifest(tmp_path / "kept.jsonl"))
    for number in range(3):
        name = f"gone-{number}"
        forebay("dataset", "import", name, manifest(tmp_path / f"{name}.jsonl", 5 + number))
        forebay("dataset", "delete", name, "--yes")
    marked = forebay("snapshot", "gc", "--mark", "--grace", "0s", "--json").json
    assert marked["pages"] > DELETED_BEFORE_THE_KILL

    killed = subprocess.run([sys.executable, "-c", KILLED_SWEEP], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr.decode()

    assert forebay("snapshot", "stats", "kept", "--json").json["entries"] == COUNT
    planned = forebay("snapshot", "gc", "--grace", "0s", "--json").json
    assert planned["pages"] == marked["pages"] - DELETED_BEFORE_THE_KILL
    # A version made meanwhile shares pages with the garbage: they stay.
    forebay("dataset", "import", "again", tmp_path / "gone-1.jsonl")
    swept = forebay("snapshot", "gc", "--sweep", "--grace", "0s", "--json").json
    assert 0 < swept["pages"] <= planned["pages"]
    for name in ("kept", "again"):
        forebay("snapshot", "ls", f"{name}@v1", "-R")
    forebay("snapshot", "gc", "--mark", "--grace", "0s")
    forebay("snapshot", "gc", "--sweep", "--grace", "0s")
    with open_repository(meta_url) as repository:
        reached = {
            page for name in ("kept", "again") for page, _ in page_ids(repository.reader, repository.resolve(name).root)
        }
        assert {state.id for state in repository.meta.page_states()} == reached
