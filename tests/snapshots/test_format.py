"""Stored forms stay readable and stay the same: samples that an earlier Forebay wrote (docs/snapshot-format.md).

`sample.json` names the entries; `page-*.bin`, `part-*.bin`, `root-*.bin` and `commit-*.json` are what is stored, under their ids.
Never regenerate them: a change that breaks this test needs a new format number, and the reading of the old one.
"""

import json
from pathlib import Path

import pyarrow as pa

from forebay.snapshots.builder import (
    CUT_ONE_IN,
    CUT_REFS_ONE_IN,
    MAX_ENTRIES,
    MAX_REFS,
    MAX_WEIGHT,
    MIN_ENTRIES,
    MIN_REFS,
)
from forebay.snapshots.commits import decode_commit
from forebay.snapshots.entries import Entry, batch_of, entries_of
from forebay.snapshots.hashing import hash_fractions, text_hashes
from forebay.snapshots.pages import PART, ROOT, Page, encode_page, page_columns, page_id
from forebay.snapshots.roots import decode_refs, encode_refs, page_ref, summary_ref
from forebay.tiers.version import ObjectVersion

SAMPLES = Path(__file__).parents[1] / "data" / "snapshots"


def stored(kind: str) -> tuple[bytes, bytes]:
    """(id, stored bytes) of the one sample of that kind."""
    (path,) = SAMPLES.glob(f"{kind}-*")
    return bytes.fromhex(path.stem.partition("-")[2]), path.read_bytes()


def sample_entries() -> list[Entry]:
    rows = json.loads((SAMPLES / "sample.json").read_text())
    return [
        Entry(
            row["path"],
            ObjectVersion(row["store"], row["key"], row["etag"], row["size"], row["version_id"]),
            row["mtime_ns"],
            row["sha256"],
            row["labels"],
        )
        for row in rows
    ]


def test_the_sample_page_is_read() -> None:
    name, sealed = stored("page")
    assert entries_of(Page.open(name, sealed).batch()) == sample_entries()


def test_the_same_entries_still_have_the_same_name() -> None:
    name, _ = stored("page")
    assert page_id(encode_page(batch_of(sample_entries()))) == name


def test_the_sample_index_is_read_and_named_the_same() -> None:
    page, sealed = stored("page")
    part, sealed_part = stored("part")
    root, sealed_root = stored("root")
    ref = page_ref(page, page_columns(Page.open(page, sealed).batch()))
    assert decode_refs(part, sealed_part, PART) == [ref]
    assert page_id(encode_refs(PART, [ref])) == part
    assert decode_refs(root, sealed_root, ROOT) == [summary_ref(part, [ref])]
    assert page_id(encode_refs(ROOT, [summary_ref(part, [ref])])) == root


def test_the_sample_commit_is_read() -> None:
    commit = decode_commit(*stored("commit"))
    assert (commit.dataset, commit.message, commit.author) == ("sample", "as written by format 1", "somebody")
    assert commit.root == stored("root")[0]
    assert (commit.entry_count, commit.size_bytes) == (
        len(sample_entries()),
        sum(e.version.size for e in sample_entries()),
    )


def test_what_decides_cuts_is_as_documented() -> None:
    assert (MIN_ENTRIES, MAX_ENTRIES, CUT_ONE_IN, MAX_WEIGHT) == (2048, 16384, 4096, 2 * 1024 * 1024)
    assert (MIN_REFS, MAX_REFS, CUT_REFS_ONE_IN) == (64, 1024, 256)
    texts = pa.array(["", "a/b.jpg", "ä"])
    assert text_hashes(texts).tolist() == [0xEF46DB3751D8E999, 0xF75F8C3DB6F9A260, 0xAD857D534A6CA359]
    assert hash_fractions(texts.slice(1, 1), 7).tolist() == [0.09829627819125963]
