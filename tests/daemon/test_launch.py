"""Starting a process that dies, hangs or is interrupted: the reason is told, and nothing is left."""

import os
import sys
import threading
from pathlib import Path

import pytest

from forebay import config
from forebay.daemon import launch
from forebay.errors import DaemonUnreachable, UsageError
from forebay.tests.support.command_line import process_is_alive, wait_until


@pytest.fixture
def request_of(tmp_path: Path) -> launch.Request:
    settings = config.resolve({}, environ={})
    return launch.Request(source="s3://bucket", mountpoint=None, settings=settings, log_file=tmp_path / "log")


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """Let something else be started instead; it writes its process number into the file."""
    program, number = tmp_path / "program", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {number}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return number


def test_died_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_of: launch.Request) -> None:
    (tmp_path / "log").write_text("of an earlier run\n")
    pretend(monkeypatch, tmp_path, "echo 'no such module' >&2; exit 7")
    with pytest.raises(DaemonUnreachable) as caught:
        launch.start(request_of)
    assert "exit status 7" in str(caught.value)
    assert "no such module" in str(caught.value)
    assert "earlier" not in str(caught.value)


def test_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_of: launch.Request) -> None:
    number = pretend(monkeypatch, tmp_path, "exec sleep 600")
    with pytest.raises(DaemonUnreachable, match="did not come up within"):
        launch.start(request_of, timeout_s=1.0)
    assert not process_is_alive(int(number.read_text()))


def test_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_of: launch.Request) -> None:
    number = pretend(monkeypatch, tmp_path, "exec sleep 600")

    def interrupt() -> None:
        wait_until(number.exists, "the process to start")
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launch.start(request_of)
    thread.join()
    assert not process_is_alive(int(number.read_text()))


def test_errors_come_back_as_what_they_were(tmp_path: Path, request_of: launch.Request) -> None:
    request = launch.Request(
        source="nonsense://x", mountpoint=None, settings=request_of.settings, log_file=request_of.log_file
    )
    with pytest.raises(UsageError, match="no kind of store is called"):
        launch.start(request)


def test_requests_survive_the_pipe(request_of: launch.Request) -> None:
    settings = config.resolve({"cache-size": "3GiB", "read-only": "true"}, environ={"FOREBAY_UMASK": "077"})
    request = launch.Request(source="s3://b/\udcff", mountpoint="/mnt/a b", settings=settings)
    again, descriptor = launch.Request.from_json(request.to_json(5))
    assert (again, descriptor) == (request, 5)
    assert again.settings.origin("umask") == "FOREBAY_UMASK"
