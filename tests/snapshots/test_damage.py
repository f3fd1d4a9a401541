"""Pages that are flipped or gone: the error names the page, and other versions go on working."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from forebay.errors import PageCorrupt
from forebay.snapshots import Entry, Repository, Selection, batch_of, builder, open_repository, puts
from forebay.snapshots.holds import page_ids
from forebay.snapshots.pages import LEAF, PART, ROOT
from forebay.tiers.version import ObjectVersion


def rows(label: str, numbers: range) -> pa.RecordBatch:
    return batch_of([Entry(f"{i:04}", ObjectVersion("s3://b", f"{i:04}", label, i)) for i in numbers])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "MIN_ENTRIES": 4,
        "MAX_ENTRIES": 16,
        "CUT_ONE_IN": 8,
        "MIN_REFS": 2,
        "CUT_REFS_ONE_IN": 4,
    }.items():
        monkeypatch.setattr(builder, name, value)
    return tmp_path / "meta.db"


@pytest.fixture
def repo(path: Path) -> Iterator[Repository]:
    with open_repository(f"sqlite:///{path}") as repository:
        repository.create_dataset("d")
        repository.create("d", [rows("a", range(300))])
        repository.edit("d", [puts(rows("b", range(100, 110)))])
        yield repository


def own_page(repo: Repository, ref: str, other: str, kind: int) -> bytes:
    """A page of that kind that only the one version has."""
    ours = dict(page_ids(repo.reader, repo.resolve(ref).root))
    theirs = dict(page_ids(repo.reader, repo.resolve(other).root))
    return next(name for name, k in ours.items() if k == kind and name not in theirs)


@pytest.mark.parametrize("kind", [LEAF, PART, ROOT])
@pytest.mark.parametrize("damage", ["flipped", "missing", "truncated"])
def test_the_damaged_page_is_named_and_other_versions_work(
    repo: Repository, path: Path, kind: int, damage: str
) -> None:
    name = own_page(repo, "d@v1", "d@v2", kind)
    with sqlite3.connect(path) as database:
        (data,) = database.execute("SELECT data FROM pages WHERE id = ?", (name,)).fetchone()
        if damage == "missing":
            database.execute("DELETE FROM pages WHERE id = ?", (name,))
        else:
            changed = data[:-9] if damage == "truncated" else data[:40] + bytes([data[40] ^ 1]) + data[41:]
            database.execute("UPDATE pages SET data = ? WHERE id = ?", (changed, name))
    database.close()
    fresh = Repository(repo.meta)
    with pytest.raises(PageCorrupt, match=name.hex()) as caught:
        list(fresh.resolve("d@v1").batches())
    assert "restore the metadata store" in str(caught.value)
    with pytest.raises(PageCorrupt, match=name.hex()):
        list(fresh.diff("d@v1", "d@v2"))
    assert sum(batch.num_rows for batch in fresh.resolve("d@v2").batches()) == 300
    fresh.edit("d", [puts(rows("c", range(5)))])
    assert fresh.select("d", Selection(where="size < 50"), branch="few").snapshot.commit.entry_count == 50
    # The same content imported again heals it.
    fresh.create("d", [rows("a", range(300))], branch="repair")
    assert sum(batch.num_rows for batch in Repository(repo.meta).resolve("d@v1").batches()) == 300


def test_a_damaged_commit_is_named(repo: Repository, path: Path) -> None:
    commit = repo.resolve("d@v1").commit
    with sqlite3.connect(path) as database:
        (data,) = database.execute("SELECT data FROM commits WHERE id = ?", (commit.id,)).fetchone()
        database.execute("UPDATE commits SET data = ? WHERE id = ?", (data.replace(b"a", b"b"), commit.id))
    database.close()
    with pytest.raises(PageCorrupt, match=commit.short_id):
        repo.resolve("d@v1")
    assert repo.resolve("d@v2").commit.entry_count == 300
