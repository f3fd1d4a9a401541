"""Manifests as people write them: every fault is named by line, and everything else arrives."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lz4.frame
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import ManifestError
from forebay.snapshots import ENTRY_SCHEMA, Entry, Location, ManifestOptions, ObjectName, entries_of, sorting
from forebay.snapshots import manifest_source as source_module
from forebay.snapshots.entries import concat_batches
from forebay.snapshots.importing import ImportProgress, ManifestImport
from forebay.tiers.understore import ObjectInfo

GOOD = b'{"url":"s3://b/a","size":1,"etag":"e"}'


def line(**fields: Any) -> bytes:
    return json.dumps({"url": "s3://b/k", "size": 1, "etag": "e", **fields}).encode()


def read(data: bytes | Path, **options: Any) -> tuple[list[Entry], ImportProgress]:
    reading = ManifestImport(data if isinstance(data, Path) else io.BytesIO(data), ManifestOptions(**options))
    batches = reading.run(lambda entries: list(entries))
    assert all(batch.schema.names == ENTRY_SCHEMA.names for batch in batches)
    return entries_of(concat_batches(batches)), reading.progress


def fault(data: bytes, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        read(data, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{", "bad JSON"),
        (b'{"url":"s3://b/x"} {"url":"s3://b/y"}', "bad JSON"),
        (b"[]", "array"),
        (b"{}", "`url`"),
        (b'{"url":"s3://b/\xff"}', "bad UTF-8 at byte 16"),
        (b'{"url":"s3://b/\\ud800"}', "bad JSON"),
        (line(size=-1), "size"),
        (line(size="1"), "size"),
        (line(size=1.5), "size"),
        (line(size=1 << 70), "size"),
        (line(path="../x"), "'..' component"),
        (line(path="a/./b"), "'.' component"),
        (line(path="a//b"), "empty component"),
        (line(path="a/"), "empty component"),
        (line(path="/etc/passwd"), "absolute"),
        (line(path=""), "empty"),
        (line(path="a\0b"), "NUL"),
        (line(path="x" * 300), "longer than 255"),
        (line(path="/".join(["x" * 200] * 30)), "longer than 4096"),
        (line(url="s3://b/"), "no object"),
        (line(url="s3://b"), "no store that is known"),
        (line(url="ftp://user:geheim@h/x?sig=geheim"), "no store that is known"),
        (line(url="just/a/key"), "no bucket was given"),
        (line(sha256="xyz"), "64 hex digits"),
        (line(mtime="yesterday"), "mtime"),
        (line(mtime=1e300), "mtime"),
        (line(lables={}), "lables"),
        (line(labels={"a": 1}, label=[{"name": "n"}]), "not both"),
        (line(label=[{"name": "n"}, {"name": "n"}]), "twice"),
        (line(label=[{"type": "x"}]), "name"),
        (b'{"url":"s3://b/x","size":1,"etag":"e","labels":' + b"[" * 2000 + b"]" * 2000 + b"}", ""),
        (b'{"url":"s3://b/x","size":1}', "missing"),
        (b'{"url":"s3://b/x","etag":"e"}', "missing"),
        (b'{"url":"s3://b/x","size":1,"etag":""}', "missing"),
    ],
)
def test_a_bad_line_is_named(bad: bytes, words: str, tmp_path: Path) -> None:
    data = GOOD + b"\n\n" + bad + b"\n" + line(path="z") + b"\n"
    message = fault(data)
    assert "line 3:" in message
    assert words in message
    assert "geheim" not in message
    rejects = tmp_path / "rejects.jsonl"
    entries, progress = read(data, on_error="skip", rejects=rejects)
    assert [e.path for e in entries] == ["a", "z"]
    assert (progress.rejected, progress.entries) == (1, 2)
    (record,) = [json.loads(text) for text in rejects.read_text().splitlines()]
    assert record["line"] == 3
    assert words in record["reason"]


def test_duplicate_paths_name_both_lines(tmp_path: Path) -> None:
    data = b"\n".join([line(path="b"), line(path="a"), line(path="b", size=2), line(path="b", size=3)])
    assert "line 3: the path 'b' is already that of line 1" in fault(data)
    entries, progress = read(data, on_error="skip", rejects=tmp_path / "r")
    assert [(e.path, e.version.size) for e in entries] == [("a", 1), ("b", 1)]
    assert progress.rejected == 2


def test_a_file_that_is_also_a_folder_names_both_lines(tmp_path: Path) -> None:
    data = b"\n".join(line(path=p) for p in ["a/b", "a", "a-b", "a.txt", "a/b/c", "b"])
    message = fault(data)
    assert "line 1: the path 'a/b' needs a folder 'a', but that is a file (line 2)" in message
    entries, _ = read(data, on_error="skip", rejects=tmp_path / "r")
    assert [e.path for e in entries] == ["a", "a-b", "a.txt", "b"]


def test_clashes_are_found_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, many paths that begin with its name, and only then the path below it, in other batches."""
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 500)
    names = ["x", *(f"x-{i:04}" for i in range(100)), "x/y"]
    assert "needs a folder 'x'" in fault(b"\n".join(line(path=p) for p in names))
    again = b"\n".join(line(path=p) for p in [*(f"d{i:04}" for i in range(30)), "d0029"])
    assert "line 31: the path 'd0029' is already that of line 30" in fault(again)


def test_line_ends_marks_and_blank_lines_do_not_matter() -> None:
    data = b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + line(path="b") + b"\r\n" + line(path="c")
    entries, progress = read(data)
    assert [e.path for e in entries] == ["a", "b", "c"]
    assert progress.lines == 3


def test_an_empty_file_is_an_empty_version() -> None:
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        assert read(data)[0] == []


def test_utf_16_is_named() -> None:
    assert "UTF-16" in fault(GOOD.decode().encode("utf-16"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("pack", [gzip.compress, lz4.frame.compress, lambda data: data], ids=["gz", "lz4", "plain"])
@pytest.mark.parametrize("is_file", [True, False])
def test_compression_is_recognised(pack: Callable[[bytes], bytes], is_file: bool, tmp_path: Path) -> None:
    data = pack(b"\n".join(line(path=f"{i:05}", labels={"n": i}) for i in range(3000)))
    path = tmp_path / "m"
    path.write_bytes(data)
    entries, progress = read(path if is_file else data)
    assert len(entries) == 3000
    if is_file:
        assert progress.read_bytes == progress.total_bytes == len(data)


@pytest.mark.parametrize("pack", [gzip.compress, lz4.frame.compress], ids=["gz", "lz4"])
def test_a_file_that_is_cut_short_is_an_error(pack: Callable[[bytes], bytes]) -> None:
    data = pack(b"\n".join(line(path=f"{i:05}", labels={"n": i}) for i in range(3000)))
    assert "cut short" in fault(data[: len(data) // 2])


def test_long_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 1 << 16)
    big = line(path="big", labels={"polygon": "x" * (6 << 20)})
    too_big = line(path="too-big", labels={"polygon": "x" * (10 << 20)})
    data = b"\n".join([GOOD, big, too_big, line(path="z")])
    assert "line 3: the line is longer than 8 MiB" in fault(data)
    entries, progress = read(data, on_error="skip", rejects=tmp_path / "r")
    assert [e.path for e in entries] == ["a", "big", "z"]
    assert progress.rejected == 1
    assert (tmp_path / "r").stat().st_size < 1 << 20


def test_many_long_labels_still_fit_into_pages(tmp_path: Path) -> None:
    from forebay.snapshots import open_repository

    with open_repository(f"sqlite:///{tmp_path}/meta.db") as repo:
        repo.create_dataset("d")
        data = b"\n".join(line(path=f"{i}", labels={"p": f"{i}" * (5 << 20)}) for i in range(4))
        repo.import_manifest("d", io.BytesIO(data))
        assert [len(e.labels["p"]) for b in repo.resolve("d").batches() for e in entries_of(b)] == [5 << 20] * 4
        assert all(state.stored_bytes < 16 << 20 for state in repo.meta.page_states())


def test_the_fields_of_a_line() -> None:
    (found,), _ = read(
        line(
            url="s3://bucket/some/key.jpg",
            path="train/1.jpg",
            size=5,
            etag='"abc"',
            versionId="v1",
            sha256="AB" * 32,
            mtime="2024-05-01T00:00:00Z",
            labels={"class": "cat", "boxes": [[1, 2], [3.5, 4]], "ok": True, "n": None},
        )
    )
    assert (found.version.store, found.version.key, found.version.etag) == ("s3://bucket", "some/key.jpg", "abc")
    assert (found.path, found.version.size, found.version.version_id) == ("train/1.jpg", 5, "v1")
    assert (found.sha256, found.mtime_ns) == ("ab" * 32, 1_714_521_600_000_000_000)
    assert found.labels == {"class": "cat", "boxes": [[1, 2], [3.5, 4]], "ok": True, "n": None}


def test_the_form_of_labelling_tools() -> None:
    label = [
        {"name": "animal", "type": "classification", "version": 3, "data": ["cat"]},
        {"name": "boxes", "type": "detection", "version": "1.2", "data": [{"x": 1, "class": "dog"}]},
    ]
    (found,), _ = read(line(type="image", label=label))
    assert found.labels == {
        "type": "image",
        "animal": {"type": "classification", "version": 3, "data": ["cat"], "class": "cat"},
        "boxes": {"type": "detection", "version": "1.2", "data": [{"x": 1, "class": "dog"}]},
    }


def test_unknown_fields_can_be_ignored() -> None:
    (found,), _ = read(line(width=640), ignore_unknown=True)
    assert found.path == "k"


def test_urls_are_located_by_the_caller() -> None:
    asked: list[str] = []

    def locator(url: str) -> Location | None:
        asked.append(url)
        if url.startswith("http://h:1/bucket/"):
            return Location("s3://bucket@http://h:1", "http://h:1/bucket/", percent_encoded=True)
        if url.startswith("s3://in/"):
            return Location("s3://out@e", "s3://in/", key_prefix="moved/")
        return None

    urls = [f"http://h:1/bucket/a%20{i}?X-Signature=s" for i in range(5)] + ["s3://in/x", "s3://plain/y", "key"]
    data = b"\n".join(line(url=url, path=f"p{i}") for i, url in enumerate(urls))
    entries, _ = read(data, locator=locator, base=Location("s3://base", "", "pre/"))
    assert [(e.version.store, e.version.key) for e in entries[4:]] == [
        ("s3://bucket@http://h:1", "a 4"),
        ("s3://out@e", "moved/x"),
        ("s3://plain", "y"),
        ("s3://base", "pre/key"),
    ]
    assert len(asked) == 3


def test_urls_are_decoded_or_refused() -> None:
    def locator(url: str) -> Location:
        return Location("s3://b@e", "http://h/b/", percent_encoded=True)

    (found,), _ = read(line(url="http://h/b/a%2Fb%20%C3%A4%3F?X-Sig=1#part"), locator=locator)
    assert found.version.key == "a/b ä?"
    for bad in ("http://h/b/%FF", "http://h/b/?x=1", "http://h/b/"):
        assert "names no object" in fault(line(url=bad), locator=locator)


def test_what_is_missing_is_looked_up_many_at_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def resolve(names: Sequence[ObjectName]) -> list[ObjectInfo | str]:
        calls.append(len(names))
        return [f"{n.key} is not there" if n.key == "k3" else ObjectInfo(n.key, 7, f"e-{n.key}", 5, "v") for n in names]

    lines = [json.dumps({"url": f"s3://b/k{i}"}).encode() for i in range(100)]
    lines[5] = line(url="s3://b/k5")
    lines[6] = json.dumps({"url": "s3://b/k6", "size": 8}).encode()
    data = b"\n".join(lines)
    assert "k3 is not there" in fault(data.replace(lines[6], b""), resolve=resolve)
    calls.clear()
    entries, progress = read(data, resolve=resolve, on_error="skip", rejects=tmp_path / "r")
    assert calls == [99]
    assert len(entries) == 98
    assert progress.rejected == 2
    assert "the line says 8 bytes, the store has 7" in (tmp_path / "r").read_text()
    by_path = {e.path: e for e in entries}
    assert by_path["k9"].version.etag == "e-k9"
    assert (by_path["k9"].version.version_id, by_path["k9"].mtime_ns) == ("v", 5)
    assert by_path["k5"].version.etag == "e"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=400, unique=True))
def test_external_sort_sorts(numbers: list[int]) -> None:
    def batches() -> list[pa.RecordBatch]:
        names = ["path", "line"]
        return [
            pa.RecordBatch.from_arrays([pa.array([f"{n:04}" for n in some]), pa.array(some)], names=names)
            for some in (numbers[i : i + 7] for i in range(0, len(numbers), 7))
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "RUN_BYTES", 400)
        patch.setattr(sorting, "BLOCK_ROWS", 5)
        patch.setattr(sorting, "MERGE_WAYS", 4)
        found = [n for batch in sorting.in_path_order(iter(batches())) for n in batch.column("line").to_pylist()]
    assert found == sorted(numbers)


def test_a_large_unsorted_file_is_read_again_and_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(sorting, "RUN_BYTES", 50_000)
    order = [*range(0, 2000, 2), *range(1999, 0, -2)]
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\n".join(line(path=f"{i:05}") for i in order))
    entries, progress = read(path, spool_folder=tmp_path)
    assert [e.path for e in entries] == [f"{i:05}" for i in range(2000)]
    assert progress.lines == 2000
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
