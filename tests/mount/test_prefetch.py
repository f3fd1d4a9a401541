"""`forebay prefetch`, with and without a mount, on one cache folder; pins, free, and what it says."""

import json
import signal
from pathlib import Path

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine, wait_until
from forebay.tests.support.fault_proxy import Fault

MIB = 1024 * 1024


def fill(bucket: Bucket) -> None:
    for number in range(40):
        bucket.put(f"{'ab'[number % 2]}/{number}", content(number, 30_000))
    bucket.put("large", content(99, 6 * MIB))


def test_before_any_mount(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    size = sum(map(len, bucket.truth.values()))
    plan = forebay.json("prefetch", bucket.url, "--dry-run")
    assert (plan["asked_bytes"], plan["fetch_bytes"], plan["fits"]) == (size, size, True)
    assert forebay("prefetch", bucket.url, "--check").returncode == 40
    receipt = forebay.json("prefetch", bucket.url)
    assert receipt["complete"]
    assert receipt["fetched_bytes"] == size
    assert receipt["present_bytes"] == size
    again = forebay.json("prefetch", bucket.url)
    assert again["complete"]
    assert again["fetched_bytes"] == 0
    bucket.proxy.forget()
    assert read_tree(forebay.mount(bucket.url)) == bucket.truth
    assert bucket.fetches() == 0


def test_through_a_mount(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url)
    receipt = forebay.json("prefetch", where / "a", "--to", "ram")
    assert receipt["complete"]
    assert receipt["asked_objects"] == receipt["ram"]["objects"] == 20
    done = forebay("prefetch", bucket.url, "--pin", "--lease", "1h", "--owner", "job-7")
    assert done.returncode == 0
    assert done.stdout.startswith(f"complete: {bucket.url}\n")
    assert "lease" in done.stdout
    bucket.proxy.forget()
    assert read_tree(where) == bucket.truth
    assert bucket.fetches() == 0
    assert forebay.json("info", where / "large")["pins"] == 1
    (pin,) = forebay.json("pins", where)["pins"]
    assert pin["owner"] == "job-7"
    freed = forebay.json("free", where)
    assert (freed["freed_objects"], freed["pinned_objects"]) == (0, 41)
    assert forebay.json("unpin", where, "--owner", "job-7")["removed"] == [pin["id"]]
    assert forebay("unpin", where, pin["id"]).returncode == 2
    assert forebay.json("free", where / "a")["freed_objects"] == 20
    assert forebay.json("info", where)["cached_bytes"] == 20 * 30_000 + 6 * MIB


def test_list_and_what_is_not_there(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    fill(bucket)
    listed = tmp_path / "list"
    listed.write_text(f"a/0\n\n# a comment\n{bucket.url}/b/1\nno/such\nlarge\r\n")
    done = forebay("prefetch", bucket.url, "-f", listed, "--json")
    assert done.returncode == 40
    receipt = json.loads(done.stdout)
    assert receipt["asked_objects"] == 3
    assert receipt["not_found"] == {"count": 1, "examples": ["no/such"]}
    assert not receipt["complete"]
    assert forebay("prefetch", bucket.url, "-f", tmp_path / "none").returncode == 2
    listed.write_text("s3://elsewhere/x\n")
    wrong = forebay("prefetch", bucket.url, "-f", listed)
    assert wrong.returncode == 2
    assert "line 1" in wrong.stderr
    assert "not everything" in done.stderr


def test_store_that_fails_half_way(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    bucket.proxy.fault = Fault.answer(403, "AccessDenied", only="GET", key="a/0")
    done = forebay("prefetch", bucket.url, "--json")
    assert done.returncode == 40
    receipt = json.loads(done.stdout)
    assert receipt["missing_objects"] == 1
    assert receipt["missing_examples"][0]["path"] == "a/0"
    bucket.proxy.heal()
    bucket.proxy.forget()
    assert forebay.json("prefetch", bucket.url)["complete"]
    assert {request.key for request in bucket.proxy.requests if request.kind == "GET"} == {"a/0"}


def test_interrupted_goes_on_where_it_was(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    bucket.proxy.fault = Fault.delay(0.1, only="GET")
    process = forebay.start("prefetch", bucket.url, "--max-connections", "2")
    bucket.proxy.wait_for(10, "GET")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode == 130
    assert forebay.pids() == []
    bucket.proxy.heal()
    receipt = forebay.json("prefetch", bucket.url)
    assert receipt["complete"]
    assert receipt["found_objects"] > 0


def test_interrupted_through_a_mount_is_cancelled_there(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url, "--max-connections", "4")
    bucket.proxy.fault = Fault.delay(3.0, only="GET")
    process = forebay.start("prefetch", where)
    bucket.proxy.wait_for(3, "GET")
    totals: set[object] = set()

    def total() -> bool:
        (job,) = forebay.status(where)["jobs"]
        totals.add(job["progress"].get("total_objects"))
        return job["state"] != "running" or 41 in totals

    wait_until(total, "the total to be known while it runs")
    assert totals - {None} == {41}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode == 130
    wait_until(
        lambda: [job["state"] for job in forebay.status(where)["jobs"]] == ["cancelled"], "the job to be cancelled"
    )


def test_in_the_background(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    job = forebay.json("prefetch", bucket.url, "--background", environ={"FOREBAY_IDLE_TIMEOUT": "1s"})
    assert job["state"] == "running"
    wait_until(lambda: not forebay.pids(), "the process to end when it is done and idle")
    assert forebay.json("prefetch", bucket.url, "--check")["complete"]


def test_free_removes_the_folders_of_a_source_that_nobody_holds(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    forebay.ok("prefetch", bucket.url, "--pin", "--lease", "1h")
    assert forebay("free", bucket.url).returncode == 2
    (pin,) = forebay.json("pins", bucket.url)["pins"]
    forebay.ok("unpin", bucket.url, pin["id"])
    assert forebay.json("free", bucket.url)["freed_bytes"] > 0
    assert [path for path in (forebay.folder / "cache").rglob("*") if path.is_file()] == []
    assert list(forebay.ram.rglob("*")) == []
    assert forebay.json("free", bucket.url)["freed_bytes"] == 0
