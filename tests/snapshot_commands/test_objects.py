"""Commands that ask the object store: look-ups, versions of a bucket, drift, archives."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from forebay.errors import BucketNotFound, DriftFound, Incomplete, ManifestError, StoreUnavailable, UsageError
from forebay.tests.support.fault_proxy import fault_proxy
from forebay.tests.support.servers import S3Server

from .conftest import Forebay

COUNT = 40


def filled_bucket(server: S3Server, count: int = COUNT) -> str:
    bucket = server.new_bucket("snap")
    client = server.client()
    for number in range(count):
        client.put_object(
            Bucket=bucket, Key=f"in/{('cat', 'dog')[number % 2]}/{number:03}.jpg", Body=b"%d" % number * 9
        )
    return bucket


def test_what_a_manifest_leaves_out_is_looked_up(forebay: Forebay, s3_environment: S3Server, tmp_path: Path) -> None:
    bucket = filled_bucket(s3_environment)
    endpoint = s3_environment.endpoint_url
    urls = [
        f"s3://{bucket}/in/cat/000.jpg",
        f"{endpoint}/{bucket}/in/dog/001.jpg",
        f"{endpoint}/{bucket}/in/cat/002.jpg?X-Amz-Signature=not-kept",
        "cat/004.jpg",
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"url": url}) + "\n" for url in urls))
    forebay("dataset", "import", "pets", tmp_path / "m.jsonl", "--base", f"s3://{bucket}/in")
    lines = {line["key"]: line for line in forebay("snapshot", "ls", "pets", "-R", "--json").lines}
    assert set(lines) == {"in/cat/000.jpg", "in/dog/001.jpg", "in/cat/002.jpg", "in/cat/004.jpg"}
    assert lines["in/dog/001.jpg"]["etag"] == hashlib.md5(b"1" * 9).hexdigest()
    assert lines["in/dog/001.jpg"]["size"] == 9
    assert lines["in/dog/001.jpg"]["store"] == f"s3://{bucket}@{endpoint.removeprefix('http://')}"

    (tmp_path / "gone.jsonl").write_text(json.dumps({"url": f"s3://{bucket}/in/gone.jpg"}) + "\n")
    failed = forebay("dataset", "import", "more", tmp_path / "gone.jsonl", code=ManifestError.exit_code)
    assert "gone.jsonl, line 1: there is no object 'in/gone.jpg'" in failed.err
    (tmp_path / "foreign.jsonl").write_text('{"url": "https://example.org/x.jpg"}\n')
    failed = forebay("dataset", "import", "more", tmp_path / "foreign.jsonl", code=ManifestError.exit_code)
    assert "is of no store that is known here" in failed.err

    forebay("dataset", "add", "pets", f"s3://{bucket}/in/cat/006.jpg", "--path", "new.jpg", "--set", "class=cat")
    refused = forebay("dataset", "add", "pets", __file__, code=UsageError.exit_code)
    assert f"--manifest {__file__}" in refused.err
    (added,) = forebay("snapshot", "ls", "pets", "new.jpg", "--json").lines
    assert (added["size"], added["labels"]) == (9, {"class": "cat"})


def test_a_version_of_a_bucket_as_it_is(forebay_sqlite: Forebay, s3_environment: S3Server) -> None:
    bucket = filled_bucket(s3_environment)
    client = s3_environment.client()
    client.put_object(Bucket=bucket, Key="in/folder/", Body=b"")
    made = forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}/in", "--tag", "first", "--json").json
    assert (made["entries"], made["name"]) == (COUNT, "pets@v1")
    shown = forebay_sqlite("snapshot", "show", "pets", "--stores", "--json").json
    assert [store.partition("@")[0] for store in shown["stores"]] == [f"s3://{bucket}"]
    client.delete_object(Bucket=bucket, Key="in/cat/000.jpg")
    client.put_object(Bucket=bucket, Key="in/dog/001.jpg", Body=b"changed")
    forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}/in/")
    lines = forebay_sqlite("snapshot", "diff", "pets@v1", "pets@v2", "--json").lines
    assert [(line["path"], line["change"]) for line in lines[:-1]] == [
        ("cat/000.jpg", "removed"),
        ("dog/001.jpg", "content"),
    ]
    gone = forebay_sqlite("snapshot", "create", "new", "--from", "s3://no-such-bucket", code=BucketNotFound.exit_code)
    assert "no-such-bucket" in gone.err
    assert [one["name"] for one in forebay_sqlite("dataset", "list", "--json").json] == ["pets"]


def test_a_bucket_that_keeps_versions_is_recorded_with_version_ids(
    forebay_sqlite: Forebay, s3_environment: S3Server
) -> None:
    bucket = s3_environment.new_bucket("versioned")
    client = s3_environment.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = {key: client.put_object(Bucket=bucket, Key=key, Body=key.encode())["VersionId"] for key in ("a", "b/c")}
    forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}")
    client.put_object(Bucket=bucket, Key="a", Body=b"another")
    lines = forebay_sqlite("snapshot", "ls", "pets", "-R", "--json").lines
    assert {line["key"]: line["versionId"] for line in lines} == ids
    forebay_sqlite("snapshot", "verify", "pets")
    client.delete_object(Bucket=bucket, Key="a", VersionId=ids["a"])
    assert "1 missing" in forebay_sqlite("snapshot", "verify", "pets", code=DriftFound.exit_code).err


def test_drift_is_found_and_listed(forebay: Forebay, s3_environment: S3Server, tmp_path: Path) -> None:
    bucket = filled_bucket(s3_environment)
    forebay("snapshot", "create", "pets", "--from", f"s3://{bucket}/in")
    assert f"all {COUNT} objects" in forebay("snapshot", "verify", "pets").out
    client = s3_environment.client()
    client.delete_object(Bucket=bucket, Key="in/cat/000.jpg")
    client.put_object(Bucket=bucket, Key="in/dog/001.jpg", Body=b"changed")
    client.put_object(Bucket=bucket, Key="in/dog/003.jpg", Body=b"3" * 8 + b"4")
    found = forebay("snapshot", "verify", "pets", "--list", "drift.jsonl", code=DriftFound.exit_code)
    assert (
        f"3 of {COUNT} objects of pets@v1 are not what was recorded: 1 missing, 2 overwritten (all in drift.jsonl)"
        in found.err
    )
    drift = {line["path"]: line for line in map(json.loads, (tmp_path / "drift.jsonl").read_text().splitlines())}
    assert {path: one["problem"] for path, one in drift.items()} == {
        "cat/000.jpg": "missing", "dog/001.jpg": "overwritten", "dog/003.jpg": "overwritten",
    }  # fmt: skip
    assert drift["dog/001.jpg"]["found"]["size"] == 7
    lines = forebay("snapshot", "verify", "pets", "--json", code=DriftFound.exit_code).lines
    assert lines[-1]["drift"] == {"missing": 1, "overwritten": 2}
    assert len(lines) == 4


def test_an_outage_during_verify_is_no_drift(forebay_sqlite: Forebay, s3_environment: S3Server) -> None:
    bucket = filled_bucket(s3_environment, 4)
    with fault_proxy(s3_environment.endpoint_url) as proxy:
        store = ("--endpoint-url", proxy.url, "--io-timeout", "2s")
        forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}/in", *store)
        proxy.refuse()
        failed = forebay_sqlite("snapshot", "verify", "pets", *store, code=StoreUnavailable.exit_code)
    assert "not what was recorded" not in failed.err


def test_an_archived_version_is_whole_when_the_originals_are_gone(forebay: Forebay, s3_environment: S3Server) -> None:
    bucket, archive = filled_bucket(s3_environment), s3_environment.new_bucket("archive")
    client = s3_environment.client()
    forebay("snapshot", "create", "pets", "--from", f"s3://{bucket}/in")
    forebay("dataset", "remove", "pets", "dog", "-m", "only cats")
    first = forebay("snapshot", "archive", "pets@v1", "--to", f"s3://{archive}/pets", "--json").json
    assert (first["copied"], first["already_there"]) == (COUNT, 0)
    second = forebay("snapshot", "archive", "pets@v2", "--to", f"s3://{archive}/pets", "--json").json
    assert (second["copied"], second["already_there"]) == (0, COUNT // 2)
    for number in range(COUNT):
        client.delete_object(Bucket=bucket, Key=f"in/{('cat', 'dog')[number % 2]}/{number:03}.jpg")
    assert f"in its archive s3://{archive}/pets" in forebay("snapshot", "verify", "pets@v1").out
    assert "40 missing" in forebay("snapshot", "verify", "pets@v1", "--originals", code=DriftFound.exit_code).err
    assert forebay("snapshot", "show", "pets@v1", "--json").json["archive"] == f"s3://{archive}/pets"
    assert "archive-" not in forebay("snapshot", "log", "pets").out + forebay("dataset", "show", "pets").out
    assert len(forebay("snapshot", "log", "pets", "--json").lines) == 2
    forebay("snapshot", "gc", "--mark", "--grace", "0s")
    assert forebay("snapshot", "gc", "--sweep", "--grace", "0s", "--json").json["pages"] == 0
    forebay("snapshot", "verify", "pets@v2")


def test_what_is_gone_cannot_be_archived(forebay_sqlite: Forebay, s3_environment: S3Server) -> None:
    bucket, archive = filled_bucket(s3_environment, 6), s3_environment.new_bucket("archive")
    forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}/in")
    s3_environment.client().delete_object(Bucket=bucket, Key="in/cat/002.jpg")
    failed = forebay_sqlite("snapshot", "archive", "pets", "--to", f"s3://{archive}/p", code=Incomplete.exit_code)
    assert "1 of 6 objects are not what the version recorded" in failed.err
    assert "cat/002.jpg" in failed.err
    assert forebay_sqlite("snapshot", "show", "pets", "--json").json["archive"] is None


def test_an_archive_that_was_killed_is_gone_on_with(
    forebay_sqlite: Forebay, s3_environment: S3Server, tmp_path: Path
) -> None:
    bucket, archive = filled_bucket(s3_environment), s3_environment.new_bucket("archive")
    forebay_sqlite("snapshot", "create", "pets", "--from", f"s3://{bucket}/in")
    client = s3_environment.client()
    # Small windows, so that the kill falls between two of them.
    code = "import sys; from forebay.snapshots import archive; archive.WINDOW_ENTRIES = 4; archive.COPIES_AT_ONCE = 1"
    code += "; from forebay import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "snapshot", "archive", "pets", "--to", f"s3://{archive}/p"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if client.list_objects_v2(Bucket=archive).get("KeyCount", 0) >= 3:
                break
        process.kill()
    there = client.list_objects_v2(Bucket=archive).get("KeyCount", 0)
    assert there >= 3
    done = forebay_sqlite("snapshot", "archive", "pets", "--to", f"s3://{archive}/p", "--json").json
    assert done["copied"] + done["already_there"] == COUNT
    assert done["already_there"] >= 3
    forebay_sqlite("snapshot", "verify", "pets")
