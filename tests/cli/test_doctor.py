"""The doctor finds what is wrong, says what to do, and shows no credentials."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from forebay import config
from forebay.daemon import checkup, machine
from forebay.tests.support.command_line import CommandLine
from forebay.tests.support.servers import S3Server


def test_healthy_machine_and_store(forebay: CommandLine, s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket()
    done = forebay(
        "doctor", f"s3://{bucket}", "--no-speed", "--cache-dir", str(tmp_path / "c"), "--json", environ=s3.environment
    )
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["credentials"]["grade"] == "ok"
    assert "environment" in checks["credentials"]["found"]
    assert checks["store"]["grade"] == "ok"
    assert checks["clock"]["grade"] == "ok"
    assert s3.access_key not in done.stdout + done.stderr
    assert s3.secret_key not in done.stdout + done.stderr
    assert not list(tmp_path.glob("**/.forebay-doctor*"))


def test_nothing_works(forebay: CommandLine) -> None:
    done = forebay("doctor", "s3://bucket", "--no-speed", "--endpoint-url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "fail  credentials    none found" in done.stdout
    assert "fail  store" in done.stdout
    assert "-> check the address" in done.stdout


def test_metadata(forebay: CommandLine, tmp_path: Path) -> None:
    away = forebay("doctor", "--no-speed", "--meta-url", "mongodb://user:hunter2@127.0.0.1:1/x")
    assert away.returncode == 1
    assert "fail  metadata" in away.stdout
    assert "hunter2" not in away.stdout + away.stderr
    there = forebay.ok("doctor", "--no-speed", "--meta-url", f"sqlite:///{tmp_path / 'meta.db'}")
    assert "ok    metadata" in there


def test_fuse_device_missing(tmp_path: Path) -> None:
    finding = checkup.check_fuse_device(tmp_path / "fuse")
    assert finding.grade == "fail"
    assert "modprobe" in finding.remedy


def test_speed_of_the_disk_is_measured_and_nothing_left(tmp_path: Path) -> None:
    findings = {f.what: f for f in checkup.check_cache_disk(tmp_path / "not" / "yet", measure_speed=True)}
    assert findings["cache speed"].found.startswith("writes ")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_that_of_the_container_or_machine() -> None:
    assert 0 < machine.memory_bytes() < 1 << 50


def test_tmpfs_is_known() -> None:
    place = machine.file_system_of(Path("/dev/shm/not/there"))
    assert place.kind == "tmpfs"
    assert place.mountpoint == "/dev/shm"


@pytest.fixture
def late_clock() -> Iterator[str]:
    """A server whose clock is twenty minutes ahead."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", formatdate(time.time() + 1200, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_wrong_clock(late_clock: str) -> None:
    settings = config.resolve({"endpoint-url": late_clock}, environ={})
    store, clock = checkup.check_clock("s3://bucket", settings)
    assert store.grade == "ok"
    assert clock.grade == "fail"
    assert "20 min behind" in clock.found
