"""Running the real command line as its users do: processes of their own, a home of their own, and nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import leftovers
from .servers import unavailable

TIMEOUT_S = 300.0
_END_TIMEOUT_S = 30.0

Done = subprocess.CompletedProcess[str]


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 180.0) -> None:
    """Poll until `condition()` is true; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.02)


def process_is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@dataclass
class CommandLine:
    """`forebay` with a home, runtime and cache folder below `folder`, and a RAM folder on tmpfs."""

    folder: Path
    ram: Path
    environment: dict[str, str]
    mountpoints: list[Path] = field(default_factory=list)

    def __call__(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, text: str | None = None
    ) -> Done:
        """Run a command to its end; never raises for its exit code. `text` is its stdin."""
        return subprocess.run(
            [sys.executable, "-m", "forebay.cli", *map(str, arguments)],
            env={**self.environment, **(environ or {})},
            input=text if text is not None else "",
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "forebay.cli", *map(str, arguments)],
            env={**self.environment, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ok(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Run a command that must succeed; its stdout."""
        done = self(*arguments, environ=environ)
        assert done.returncode == 0, (
            f"forebay {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}{done.stdout}"
        )
        return done.stdout

    def json(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> Any:
        """The JSON answer of a command that must succeed."""
        return json.loads(self.ok(*arguments, "--json", environ=environ))

    def mount(self, source: str, *flags: str, environ: Mapping[str, str] | None = None) -> Path:
        """Mount on a new folder."""
        where = self.new_mountpoint()
        self.ok("mount", source, where, *flags, environ=environ)
        return where

    def new_mountpoint(self) -> Path:
        where = self.folder / f"mnt{len(self.mountpoints)}"
        where.mkdir()
        self.mountpoints.append(where)
        return where

    def status(self, mountpoint: Path) -> dict[str, Any]:
        """The status of one mount."""
        (found,) = [one for one in self.json("status")["mounts"] if one["mountpoint"] == str(mountpoint)]
        return dict(found)

    def kill(self, mountpoint: Path) -> None:
        """kill -9 of the process behind a mount, and wait until it is gone."""
        pid = int(self.status(mountpoint)["pid"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process_is_alive(pid), f"end of {pid}")

    def logs(self) -> str:
        """Everything that background processes have logged."""
        return "".join(path.read_text(errors="replace") for path in (self.folder / "state").rglob("*.log*"))

    def pids(self) -> list[int]:
        """Every process in the registry."""
        found = []
        for path in (self.folder / "run" / "forebay").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(int(json.loads(path.read_text())["pid"]))
        return [pid for pid in found if process_is_alive(pid)]

    def clean_up(self) -> None:
        for where in self.mountpoints:
            if os.path.ismount(where) or _is_dead_mount(where):
                subprocess.run(["umount", "-l", str(where)], check=False, capture_output=True)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ram, ignore_errors=True)


def _is_dead_mount(where: Path) -> bool:
    try:
        os.stat(where)
    except OSError:
        return True
    return False


@contextlib.contextmanager
def command_line(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[CommandLine]:
    """A command line of its own; at the end nothing of it is mounted or running."""
    for name in ("run", "home", "cache", "state", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ram = Path(tempfile.mkdtemp(prefix="ram-", dir=leftovers.shm_folder()))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "AWS_", "XDG_"))}
    commands = CommandLine(
        folder,
        ram,
        {
            **clean,
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_DATA_HOME": str(folder / "data"),
            "FOREBAY_RAM_DIR": str(ram),
            "AWS_EC2_METADATA_DISABLED": "true",
            **(environment or {}),
        },
    )
    try:
        yield commands
    finally:
        commands.clean_up()


def need_fuse() -> None:
    """Skip the test (or fail it where everything must be here) if this machine cannot mount."""
    if not os.path.exists("/dev/fuse"):
        unavailable("there is no /dev/fuse")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        unavailable("mounting without root needs fusermount3")
