"""A dataset's life through the command line: import, change, branch, merge, compare, name, go back, collect."""

import gzip
import json
from pathlib import Path

import pytest

from forebay.errors import Incomplete, ManifestError, RefNotFound, UsageError
from forebay.snapshots import MergeConflict

from .conftest import Forebay

COUNT = 60


def manifest(path: Path, count: int = COUNT, bad: bytes = b"") -> Path:
    """Entries that need no look-up, half cats, half dogs."""
    lines = []
    for number in range(count):
        kind = ("cat", "dog")[number % 2]
        lines.append({
            "url": f"s3://bucket/in/{number:03}.jpg", "path": f"{kind}/{number:03}.jpg", "size": number, "etag": f"{number:032x}",
            "labels": {"class": kind, "quality": number / count},
        })  # fmt: skip
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + bad)
    return path


def test_the_life_of_a_data_set(forebay: Forebay, tmp_path: Path) -> None:
    first = forebay(
        "dataset", "import", "pets", manifest(tmp_path / "m.jsonl"), "-m", "first", "--tag", "d1", "--json"
    ).json
    assert (first["name"], first["entries"], first["rejected"]) == ("pets@v1", COUNT, 0)
    assert first["command"].startswith("forebay dataset import pets ")

    forebay(
        "dataset", "label", "pets", "cat/000.jpg", "dog", "--set", "checked=true", "--set", 'note="5"', "-m", "look"
    )
    entry = {line["path"]: line for line in forebay("snapshot", "ls", "pets", "cat", "--json").lines}["cat/000.jpg"]
    assert entry["labels"] == {"checked": True, "class": "cat", "note": "5", "quality": 0}
    diff = forebay("snapshot", "diff", "pets@d1", "pets@latest", "--json").lines
    assert diff[-1]["summary"]["labels"]["entries"] == 1 + COUNT // 2
    assert diff[0]["old"]["labels"] == '{"class":"cat","quality":0.0}'

    forebay("dataset", "remove", "pets", "dog", "--where", "label.quality >= 0.5", "-m", "drop")
    assert "- dog/031.jpg  31 B" in forebay("snapshot", "diff", "pets@v2", "pets@v3").out
    forebay("snapshot", "branch", "pets@v2", "relabel")
    forebay("dataset", "label", "pets", "cat", "--branch", "relabel", "--unset", "checked", "--set", "breed=tabby")
    forebay("snapshot", "merge", "pets@relabel", "-m", "merge")
    cats = forebay("snapshot", "ls", "pets@latest", "cat", "--json").lines
    assert {line["labels"]["breed"] for line in cats} == {"tabby"}

    log = forebay("snapshot", "log", "pets").out.splitlines()
    assert log[0].startswith("*  ")
    assert "v5 (main)  merge" in log[0]
    assert "|\\" in log
    assert "|/" in log
    assert any(line.endswith("v1 (tag: d1)  first") for line in log)
    records = forebay("snapshot", "log", "pets", "--json").lines
    assert [record["version"] for record in records] == [5, 4, 3, 2, 1]
    assert len(records[0]["parents"]) == 2

    forebay("snapshot", "rollback", "pets@v1", "-m", "back")
    assert forebay("snapshot", "diff", "pets@v1", "pets@latest", "--json").lines == [{"summary": {}}]
    versions = forebay("snapshot", "list", "pets", "--json").json
    assert [one["version"] for one in versions] == [6, 5, 4, 3, 2, 1]
    assert versions[0]["refs"] == ["main"]

    again = forebay("dataset", "import", "pets", tmp_path / "m.jsonl", "--json").json
    assert (again["unchanged"], again["name"]) == (True, "pets@v6")


def test_select_split_stats_and_export(forebay: Forebay, tmp_path: Path) -> None:
    forebay("dataset", "import", "pets", manifest(tmp_path / "m.jsonl"))
    cats = forebay(
        "snapshot",
        "select",
        "pets@latest",
        "--where",
        'label.class == "cat" and size < 20',
        "--branch",
        "cats",
        "--json",
    ).json
    assert cats["entries"] == 10
    tenth = forebay("snapshot", "select", "pets", "--sample", "50%", "--seed", "7", "--json").json
    assert 15 < tenth["entries"] < 45
    parts = forebay(
        "snapshot", "split", "pets@v1", "--train", "0.8", "--val", "0.1", "--part", "rest=10%", "--json"
    ).json
    assert set(parts) == {"train", "val", "rest"}
    assert sum(part["entries"] for part in parts.values()) == COUNT
    none = forebay("snapshot", "select", "pets", "--where", 'label.clas == "cat"', "--branch", "none")
    assert "no entry was chosen; `forebay snapshot stats pets`" in none.err
    coarse = forebay("snapshot", "split", "pets@v1", "--train", "0.99", "--val", "0.01", "--by", "label.class")
    assert "nothing fell to val" in coarse.err
    stats = forebay("snapshot", "stats", "pets", "--json").json
    assert stats["labels"]["class"]["cat"]["entries"] == COUNT // 2
    assert stats["folders"]["dog/"]["entries"] == COUNT // 2
    text = forebay("snapshot", "stats", "pets").out
    assert "label.class\n  cat  30" in text
    assert "values or more, each in one entry" in text

    forebay("snapshot", "export", "pets", "out.jsonl.gz")
    assert len(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines()) == COUNT
    back = forebay("dataset", "import", "copy", "out.jsonl.gz", "--json").json
    assert back["entries"] == COUNT
    one, other = (forebay("snapshot", "export", name).out for name in ("pets", "copy"))
    assert one == other
    assert len(forebay("snapshot", "export", "pets", "--where", 'label.class == "cat"').lines) == COUNT // 2
    assert not list(tmp_path.glob("*.part"))


def test_lines_that_cannot_be_used(forebay: Forebay, tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.jsonl", 10, b'nonsense\n{"url":"s3://bucket/x","path":"../up","size":1,"etag":"e"}\n')
    failed = forebay("dataset", "import", "pets", path, code=ManifestError.exit_code)
    assert "m.jsonl, line 11: bad JSON" in failed.err
    assert forebay("dataset", "list", "--json").json == []
    skipped = forebay("dataset", "import", "pets", path, "--on-error", "skip", code=Incomplete.exit_code)
    assert "2 lines were skipped and are in pets.rejects.jsonl; the rest is in" in skipped.err
    rejects = [json.loads(line) for line in (tmp_path / "pets.rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [11, 12]
    assert forebay("snapshot", "show", "pets", "--json").json["entries"] == 10


def test_names_that_are_not_there_get_near_ones(forebay: Forebay, tmp_path: Path) -> None:
    forebay("dataset", "import", "pets", manifest(tmp_path / "m.jsonl"), "--tag", "delivery-1")
    assert "did you mean pets?" in forebay("snapshot", "show", "pest", code=RefNotFound.exit_code).err
    assert "did you mean delivery-1?" in forebay("snapshot", "show", "pets@delivery-2", code=RefNotFound.exit_code).err
    assert "newest version is v1" in forebay("snapshot", "show", "pets@v2", code=RefNotFound.exit_code).err
    assert (
        forebay("snapshot", "show", "pets@v2", "--json", code=RefNotFound.exit_code).json["error"]["kind"]
        == "ref_not_found"
    )
    assert "nothing at 'bird'" in forebay("dataset", "remove", "pets", "bird", code=ManifestError.exit_code).err
    assert "nothing at 'bird'" in forebay("snapshot", "ls", "pets", "bird", code=UsageError.exit_code).err
    assert "say which entries" in forebay("dataset", "remove", "pets", code=UsageError.exit_code).err


def test_conflicts_are_named_and_resolved_by_a_side(forebay: Forebay, tmp_path: Path) -> None:
    forebay("dataset", "import", "pets", manifest(tmp_path / "m.jsonl"))
    forebay("snapshot", "branch", "pets", "other")
    forebay("dataset", "label", "pets", "cat/000.jpg", "--set", "class=lion")
    forebay("dataset", "label", "pets", "cat/000.jpg", "--set", "class=tiger", "--branch", "other")
    assert (
        "both sides changed 'cat/000.jpg'"
        in forebay("snapshot", "merge", "pets@other", code=MergeConflict.exit_code).err
    )
    merged = forebay("snapshot", "merge", "pets@other", "--on-conflict", "theirs", "--json").json
    assert merged["conflicts"] == 1
    (line,) = forebay("snapshot", "ls", "pets", "cat/000.jpg", "--json").lines
    assert line["labels"]["class"] == "tiger"


def test_tags_and_branches(forebay: Forebay, tmp_path: Path) -> None:
    forebay("dataset", "import", "pets", manifest(tmp_path / "m.jsonl"))
    forebay("dataset", "remove", "pets", "dog")
    forebay("snapshot", "tag", "pets@v1", "paper")
    assert "use --force to move it" in forebay("snapshot", "tag", "pets@v2", "paper", code=UsageError.exit_code).err
    forebay("snapshot", "tag", "pets@v2", "paper", "--force")
    assert forebay("snapshot", "show", "pets@paper", "--json").json["version"] == 2
    forebay("snapshot", "tag", "pets", "paper", "--delete")
    forebay("snapshot", "show", "pets@paper", code=RefNotFound.exit_code)
    assert "already means a version" in forebay("snapshot", "branch", "pets", "v9", code=UsageError.exit_code).err


def test_gc_frees_what_nothing_needs(forebay: Forebay, tmp_path: Path) -> None:
    forebay("dataset", "import", "pets", manifest(tmp_path / "m.jsonl"))
    forebay("dataset", "import", "other", manifest(tmp_path / "n.jsonl", 7))
    forebay("dataset", "delete", "other", "--yes")
    planned = forebay("snapshot", "gc", "--grace", "0s", "--json").json
    assert planned["pages"] > 0
    assert forebay("snapshot", "gc", "--mark", "--grace", "0s", "--json").json["pages"] == planned["pages"]
    assert forebay("snapshot", "gc", "--sweep", "--grace", "0s", "--json").json["pages"] == planned["pages"]
    assert forebay("snapshot", "gc", "--grace", "0s", "--json").json["pages"] == 0
    assert forebay("snapshot", "stats", "pets", "--json").json["entries"] == COUNT


def test_deleting_asks_first(forebay_sqlite: Forebay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forebay_sqlite("dataset", "create", "pets", "--description", "cats and dogs")
    assert forebay_sqlite("dataset", "show", "pets", "--json").json["description"] == "cats and dogs"
    assert "say --yes" in forebay_sqlite("dataset", "delete", "pets", code=UsageError.exit_code).err
    forebay_sqlite("dataset", "delete", "pets", "--yes")
    forebay_sqlite("dataset", "show", "pets", code=RefNotFound.exit_code)


def test_a_password_in_the_metadata_url_is_not_recorded(forebay_sqlite: Forebay, tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.jsonl", 3)
    made = forebay_sqlite("dataset", "import", "pets", path, "-m", "mongodb://ann:secret@host/", "--json").json
    assert "secret" not in made["command"]
