"""The registry: an entry lives exactly as long as its process, whatever way that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forebay.client import registry
from forebay.errors import ConfigError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return registry.create_runtime_folder()


def entry(folder: Path, **changes: object) -> registry.Entry:
    values: dict[str, object] = {
        "id": registry.new_id(),
        "role": "mount",
        "pid": os.getpid(),
        "source": "s3://bucket",
        "mountpoint": None,
        "cache_folders": (),
        "started_s": time.time(),
        "folder": str(folder),
    }
    return registry.Entry(**{**values, **changes})  # type: ignore[arg-type]


def test_published_is_seen_and_withdrawn_is_gone(runtime: Path) -> None:
    mine = entry(runtime, mountpoint="/mnt/a", cache_folders=("/c/1", "/c/2"))
    mine.socket.touch()
    registration = registry.Registration.publish(mine)
    assert registry.entries() == [mine]
    assert registry.holder_of(("/c/2", "/c/3")) == mine
    assert registry.holder_of(("/c/3",)) is None
    registration.withdraw()
    registration.withdraw()
    assert registry.entries() == []
    assert list(runtime.iterdir()) == []


def test_killed_process_leaves_nothing_that_looks_alive(runtime: Path) -> None:
    code = (
        "import sys, time; from forebay.client import registry as r\n"
        "e = r.Entry(id='abcd', role='mount', pid=1, source='s', mountpoint='/m', cache_folders=(), started_s=0.0, folder=sys.argv[1])\n"
        "e.socket.touch(); keep = r.Registration.publish(e); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(runtime)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
        assert [found.id for found in registry.entries()] == ["abcd"]
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    assert registry.entries() == []
    assert list(runtime.iterdir()) == []


def test_mount_of_a_path(runtime: Path, tmp_path: Path) -> None:
    outer, inner = entry(runtime, mountpoint="/mnt/a"), entry(runtime, mountpoint="/mnt/a/b")
    registrations = [registry.Registration.publish(outer), registry.Registration.publish(inner)]
    try:
        assert registry.mount_of("/mnt/a") == (outer, "")
        assert registry.mount_of("/mnt/a/x/y") == (outer, "x/y")
        assert registry.mount_of("/mnt/a/b/y") == (inner, "y")
        assert registry.mount_of("/mnt/ab") is None
        link = tmp_path / "link"
        link.symlink_to("/mnt/a/x")
        assert registry.mount_of(str(link)) == (outer, "x")
    finally:
        for registration in registrations:
            registration.withdraw()


def test_what_is_not_understood_is_left_alone(runtime: Path) -> None:
    mine = entry(runtime)
    registration = registry.Registration.publish(mine)
    try:
        (runtime / f"{mine.id}.json").write_text("{}")
        assert registry.entries() == []
        assert (runtime / f"{mine.id}.json").exists()
    finally:
        registration.withdraw()


def test_runtime_folder_is_private(runtime: Path) -> None:
    assert runtime.stat().st_mode & 0o777 == 0o700
    runtime.chmod(0o755)
    assert registry.create_runtime_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_folder_of_somebody_else_is_refused(runtime: Path) -> None:
    os.chown(runtime, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        registry.create_runtime_folder()
