"""forebay status: mounts that hang cost one time-out together, and processes of another version hide no others."""

import argparse
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import config
from forebay.client import registry
from forebay.commands import status

HANGING = 12


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[list[registry.Entry]]:
    """Processes that take connections and never answer."""
    entries, sockets = [], []
    for number in range(HANGING):
        entry = registry.Entry(
            id=f"hung{number}", role="mount", pid=1, source="s3://b", mountpoint=f"/m{number}", cache_folders=(),
            started_s=0.0, folder=str(tmp_path),
        )  # fmt: skip
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(entry.socket))
        listening.listen()
        sockets.append(listening)
        entries.append(entry)
    yield entries
    for listening in sockets:
        listening.close()


def test_mounts_that_hang_are_waited_for_at_once(
    hanging: list[registry.Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(registry, "entries", lambda: hanging)
    began = time.monotonic()
    found = status.collect(None, config.Settings())
    assert time.monotonic() - began < HANGING / 2
    shown = [one for one in found["mounts"] if one["id"].startswith("hung")]
    assert [one["mountpoint"] for one in shown] == [f"/m{number}" for number in range(HANGING)]
    assert {one["state"] for one in shown} == {"unreachable"}


def test_a_process_of_another_version_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"role": "mount", "pid": 7, "source": "s3://b", "version": "0.0.1"}
    other = {**known, "id": "1", "mountpoint": "/other", "state": "serving", "cache": {"unknown": 1}, "mount": None}
    dead = {**known, "id": "2", "mountpoint": "/dead", "state": "dead", "reason": "died"}
    monkeypatch.setattr(status, "collect", lambda *_: {"mounts": [other, dead], "holders": []})
    args = argparse.Namespace(mountpoint=None, json=False, watch=False)
    assert status.run(args, config.Settings()) == 0
    shown = capsys.readouterr().out
    assert "s3://b at /other (process 7) serves, but with another Forebay than this one (0.0.1)" in shown
    assert "s3://b at /dead: dead" in shown
