"""Which Forebay processes run on this machine for this user: one small file each, in the runtime folder.

The rule: an entry is alive exactly as long as its process holds a lock (flock) on the file. The kernel gives the lock
back whatever way the process ends, so kill -9 leaves no entry that looks alive, and a process number that was given
out again fools nobody. Whoever reads the registry removes what is stale.

The runtime folder is `$XDG_RUNTIME_DIR/forebay`, else `/run/forebay` for root, else `run` in the user's cache folder;
mode 0700, since whoever reaches a control socket may read what the mount reads.
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..errors import ConfigError

Role = Literal["mount", "serve", "prefetch"]
_ENTRY, _SOCKET = ".json", ".sock"
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One running process. `source` is as users write it; `cache_folders` are what it holds; times in seconds since the epoch."""

    id: str
    role: Role
    pid: int
    source: str
    mountpoint: str | None
    cache_folders: tuple[str, ...]
    started_s: float
    log_file: str | None = None
    metrics_port: int | None = None
    version: str = ""
    folder: str = field(default="", compare=False)

    @property
    def socket(self) -> Path:
        """Its control socket."""
        return Path(self.folder) / (self.id + _SOCKET)


def runtime_folder() -> Path:
    """The folder of the registry (not created)."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and os.path.isdir(base):
        return Path(base) / "forebay"
    if os.geteuid() == 0:
        return Path("/run/forebay")
    return config.default_cache_dir() / "run"


def create_runtime_folder() -> Path:
    """The folder of the registry, there and private; raises ConfigError if somebody else owns it."""
    folder = runtime_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise ConfigError(f"{folder} belongs to another user", remedy="set XDG_RUNTIME_DIR to a folder of your own")
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"the runtime folder {folder} cannot be made: {error.strerror}",
            remedy="set XDG_RUNTIME_DIR to a writable folder",
        ) from error
    return folder


@contextlib.contextmanager
def starting(name: str) -> Iterator[None]:
    """Held while a process for the cache folder `name` comes up: who starts one at the same time waits, and then finds it."""
    descriptor = _open_start_lock(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def nobody_starts(name: str) -> Iterator[bool]:
    """Whether no process for the cache folder `name` is coming up; while this is held, none does. Never waits."""
    descriptor = _open_start_lock(name)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _open_start_lock(name: str) -> int:
    return os.open(create_runtime_folder() / f".start-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def new_id() -> str:
    """A name for a new entry; short, since the path of a socket has 107 bytes at most."""
    return secrets.token_hex(4)


class Registration:
    """This process's own entry, from `publish` until `withdraw` or the end of the process."""

    def __init__(self, entry: Entry, descriptor: int) -> None:
        self.entry = entry
        self._descriptor = descriptor

    @classmethod
    def publish(cls, entry: Entry) -> "Registration":
        """Make the entry visible. Its folder is the runtime folder, made before."""
        folder = Path(entry.folder)
        hidden = folder / f".{entry.id}"
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = asdict(entry)
            del content["folder"]
            os.write(descriptor, json.dumps(content).encode())
            # Locked before it is visible: nobody can take it for stale.
            hidden.rename(folder / (entry.id + _ENTRY))
        except BaseException:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        return cls(entry, descriptor)

    def withdraw(self) -> None:
        """Remove entry and socket; calling it again does nothing."""
        if self._descriptor >= 0:
            _remove(Path(self.entry.folder), self.entry.id)
            os.close(self._descriptor)
            self._descriptor = -1


def entries() -> list[Entry]:
    """Every process that is alive, oldest first; removes what dead ones left."""
    folder = runtime_folder()
    found = []
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, PermissionError):
        return []
    for name in names:
        if name.endswith(_ENTRY):
            entry = _read(folder, name.removesuffix(_ENTRY))
            if entry is not None:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.started_s)


def _read(folder: Path, entry_id: str) -> Entry | None:
    try:
        descriptor = os.open(folder / (entry_id + _ENTRY), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.pread(descriptor, 1 << 20, 0), folder)
        _remove(folder, entry_id)
        return None
    finally:
        os.close(descriptor)


def _parse(content: bytes, folder: Path) -> Entry | None:
    try:
        document: dict[str, Any] = json.loads(content)
        known = {name: document[name] for name in Entry.__dataclass_fields__ if name in document}
        known["cache_folders"] = tuple(known["cache_folders"])
        return Entry(**known, folder=str(folder))
    except (ValueError, KeyError, TypeError):
        return None  # written by a version that we do not understand: not ours to talk to


def _remove(folder: Path, entry_id: str) -> None:
    for suffix in (_ENTRY, _SOCKET):
        with contextlib.suppress(OSError):
            (folder / (entry_id + suffix)).unlink()


def holder_of(cache_folders: tuple[str, ...]) -> Entry | None:
    """The process that holds one of these cache folders, if any."""
    wanted = set(cache_folders)
    return next((entry for entry in entries() if wanted & set(entry.cache_folders)), None)


def mount_of(path: str) -> tuple[Entry, str] | None:
    """The mount that `path` lies in, and the path relative to its root ("" for the root); None if in none of ours.

    The path itself is not touched, because a stat in a mount that does not answer would hang.
    """
    mounts = [entry for entry in entries() if entry.mountpoint is not None]
    absolute = os.path.abspath(path)
    for candidate in (absolute, None):
        # Links are followed only if the plain path is in no mount.
        text = candidate if candidate is not None else os.path.realpath(absolute)
        inside = [
            entry
            for entry in mounts
            if entry.mountpoint and (text + "/").startswith(entry.mountpoint.rstrip("/") + "/")
        ]
        if inside:
            nearest = max(inside, key=lambda entry: len(entry.mountpoint or ""))
            assert nearest.mountpoint is not None
            return nearest, text[len(nearest.mountpoint.rstrip("/")) + 1 :]
    return None


def wait_until_gone(entry: Entry, timeout_s: float) -> bool:
    """Wait until that process has given its cache back; False if it has not by then."""
    deadline = time.monotonic() + timeout_s
    while any(other.id == entry.id for other in entries()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
