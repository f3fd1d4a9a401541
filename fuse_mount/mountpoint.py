"""Mounting and unmounting: from a path to an open /dev/fuse, and back, without libfuse.

As root by mount(2); otherwise by `fusermount3`, which mounts for us and hands the descriptor over a socket. Every refusal
says why and what to do. Nothing here asks a mounted file system a question that could hang: the mount table is read
instead, and the one needed `statfs` runs in a child process with a deadline.

A mount whose server died answers ENOTCONN ("dead"). `prepare` takes such a mountpoint over when it was Forebay's.
"""

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import MountError, NotMounted
from .mount_table import FSTYPE, MountEntry, mounted_at, resolve
from .options import MountOptions

log = logging.getLogger(__name__)

DEVICE = "/dev/fuse"
_HELPER = "fusermount3"
_HELPER_TIMEOUT_S = 20.0
BUSY_PATIENCE_S = 1.0
_BUSY_POLL_S = 0.05
_PROBE_TIMEOUT_S = 10.0
_MAX_READ_BYTES = 1024 * 1024

# <sys/mount.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)


def prepare(mountpoint: str | os.PathLike[str], options: MountOptions) -> str:
    """The resolved mountpoint, free to be mounted on. Raises MountError with the reason and the remedy if it is not.

    A dead Forebay mount on it is removed first.
    """
    path = resolve(mountpoint)
    entry = mounted_at(path)
    if entry is not None and entry.is_fuse:
        _make_room(path, entry)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise MountError(f"mountpoint {path} does not exist", remedy=f"create it: mkdir -p {path}") from None
    except OSError as error:
        raise MountError(f"mountpoint {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise MountError(f"mountpoint {path} is not a folder")
    if not options.nonempty:
        try:
            with os.scandir(path) as found:
                first = next(found, None)
        except OSError as error:
            raise MountError(f"mountpoint {path} cannot be read: {error.strerror}") from error
        if first is not None:
            raise MountError(
                f"mountpoint {path} is not empty (it holds {first.name!r})",
                remedy="choose an empty folder, or hide its contents with --nonempty",
            )
    return path


def _make_room(path: str, entry: MountEntry) -> None:
    state = probe(path)
    owner = f"{entry.source} ({entry.fstype})"
    if state == "alive":
        raise MountError(f"{path} is a mountpoint already, of {owner}", remedy=f"forebay umount {path}")
    if state == "hangs":
        raise MountError(
            f"{path} is a mountpoint of {owner} that does not answer", remedy=f"forebay umount --force {path}"
        )
    if not entry.is_forebay:
        raise MountError(f"{path} holds a dead mount of {owner}", remedy=f"remove it: {_HELPER} -u -z {path}")
    log.warning("%s holds a dead mount of %s, whose process is gone; taking it over", path, owner)
    detach(path, lazy=True)


def probe(path: str) -> Literal["alive", "dead", "hangs"]:
    """Whether the mount at `path` answers. Asks in a child process, since such a question can hang for ever.

    The question is statfs: the kernel answers stat from the attributes it keeps, also when the server is dead.
    """
    question = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as e: sys.exit(e.errno)"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", question, path],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        code = child.wait(timeout=_PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # It may be beyond signals until the mount is aborted, so it is not waited for again.
        child.kill()
        child.returncode = -9
        return "hangs"
    return "dead" if code in (errno.ENOTCONN, errno.ECONNABORTED) else "alive"


def attach(path: str, source: str, options: MountOptions) -> int:
    """Mount at `path` (from `prepare`) and return the connection's descriptor, closed on exec. May block for a moment."""
    if not os.path.exists(DEVICE):
        raise MountError(
            f"there is no {DEVICE}", remedy="load the kernel module (modprobe fuse), or give the container the device"
        )
    if os.geteuid() == 0:
        return _mount_as_root(path, source, options)
    return _mount_by_helper(path, source, options)


def _mount_as_root(path: str, source: str, options: MountOptions) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"{DEVICE} cannot be opened: {error.strerror}", remedy="allow the device in the container's device list"
        ) from error
    data = [f"fd={device}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    data += ["default_permissions", f"max_read={_MAX_READ_BYTES}"]
    if options.allow_other:
        data.append("allow_other")
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME | (_MS_RDONLY if options.read_only else 0)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(path), FSTYPE.encode(), ctypes.c_ulong(flags), ",".join(data).encode()
    )
    if result != 0:
        code = ctypes.get_errno()
        os.close(device)
        if code == errno.EPERM and shutil.which(_HELPER):
            # Root without the right to mount (a container): the helper may have it.
            return _mount_by_helper(path, source, options)
        remedy = "mounting needs CAP_SYS_ADMIN, or fusermount3 (package fuse3)" if code == errno.EPERM else None
        raise MountError(f"{source} cannot be mounted on {path}: {os.strerror(code)}", remedy=remedy)
    return device


def _mount_by_helper(path: str, source: str, options: MountOptions) -> int:
    helper = shutil.which(_HELPER)
    if helper is None:
        raise MountError(
            f"mounting without root needs {_HELPER}, which is not here", remedy="install the package fuse3"
        )
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    choices = [
        f"fsname={name}",
        f"subtype={FSTYPE.partition('.')[2]}",
        "default_permissions",
        "nosuid",
        "nodev",
        "noatime",
    ]
    choices += [f"max_read={_MAX_READ_BYTES}", "ro" if options.read_only else "rw"]
    if options.allow_other:
        choices.append("allow_other")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [helper, "-o", ",".join(choices), "--", path], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
        )  # fmt: skip
        theirs.close()
        try:
            _, complaint = process.communicate(timeout=_HELPER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise MountError(f"{helper} did not mount {path} within {_HELPER_TIMEOUT_S:.0f} s") from None
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if descriptors:
                return descriptors[0]
    raise MountError(
        f"{source} cannot be mounted on {path}: {complaint.strip() or f'{helper} ended with {process.returncode}'}",
        remedy="--allow-other needs user_allow_other in /etc/fuse.conf" if options.allow_other else None,
    )


def detach(
    mountpoint: str | os.PathLike[str], *, lazy: bool = False, force: bool = False, patience_s: float = BUSY_PATIENCE_S
) -> None:
    """Remove the mount on top of that path. Works on dead mounts as well, and does not wait for a server.

    `lazy`: the name goes now, the mount when the last user has closed. `force`: everything that waits for it fails at once.
    A busy mount is tried again for `patience_s`: whoever only looks at it (df, a status of another user) is gone soon. Raises NotMounted if there is none, MountError if it is busy (and neither is given) or not ours to remove.
    """
    path = resolve(mountpoint)
    entry = mounted_at(path)
    if entry is None or not entry.is_forebay:
        raise NotMounted(f"{path} is not a mountpoint of Forebay", remedy="see what is mounted: forebay status")
    if os.geteuid() != 0 and force:
        abort(entry.device[1])
    unmount = _unmount_as_root if os.geteuid() == 0 else _unmount_by_helper
    deadline = time.monotonic() + patience_s
    while not unmount(path, lazy=lazy, force=force):
        if time.monotonic() >= deadline:
            raise MountError(
                f"{path} is busy: a process has a file or its working folder there", remedy="close it, or use --lazy"
            )
        time.sleep(_BUSY_POLL_S)


def _unmount_as_root(path: str, *, lazy: bool, force: bool) -> bool:
    """False if it is busy."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy or force else 0) | (_MNT_FORCE if force else 0)
    if _libc.umount2(os.fsencode(path), ctypes.c_int(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        return False
    if code == errno.EPERM and shutil.which(_HELPER):
        return _unmount_by_helper(path, lazy=lazy, force=force)
    raise MountError(f"{path} cannot be unmounted: {os.strerror(code)}")


def _unmount_by_helper(path: str, *, lazy: bool, force: bool) -> bool:
    """False if it is busy."""
    helper = shutil.which(_HELPER)
    if helper is None:
        raise MountError(f"unmounting {path} without root needs {_HELPER}", remedy="install the package fuse3")
    command = [helper, "-u", *(["-z"] if lazy or force else []), "--", path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MountError(f"{helper} did not unmount {path} within {_HELPER_TIMEOUT_S:.0f} s") from None
    if done.returncode == 0 or mounted_at(path) is None:
        return True
    if "busy" in done.stderr:
        return False
    raise MountError(f"{path} cannot be unmounted: {done.stderr.strip()}")


def abort(connection: int) -> bool:
    """End a FUSE connection from outside: every request that waits fails, its server gets ENODEV. False if not permitted."""
    with control_files() as folder:
        if folder is None:
            return False
        try:
            (folder / str(connection) / "abort").write_text("1")
        except FileNotFoundError:
            return True  # it has ended already
        except OSError as error:
            log.warning("FUSE connection %d cannot be aborted: %s", connection, error.strerror)
            return False
    return True


@contextlib.contextmanager
def control_files() -> Iterator[Path | None]:
    """The folder of the fusectl file system; mounted for a moment where it is not (containers)."""
    usual = Path("/sys/fs/fuse/connections")
    entry = mounted_at(str(usual))
    if entry is not None and entry.fstype == "fusectl":
        yield usual
        return
    if os.geteuid() != 0:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="forebay-fusectl-")
    mounted = _libc.mount(b"fusectl", os.fsencode(folder), b"fusectl", ctypes.c_ulong(0), None) == 0
    try:
        yield Path(folder) if mounted else None
    finally:
        if mounted:
            _libc.umount2(os.fsencode(folder), ctypes.c_int(_MNT_DETACH))
        os.rmdir(folder)


def raise_read_ahead(device: tuple[int, int], wanted_bytes: int) -> str | None:
    """Let the kernel read that far ahead of a sequential reader of the mount. The reason, if it is not permitted."""
    setting = Path(f"/sys/class/bdi/{device[0]}:{device[1]}/read_ahead_kb")
    try:
        setting.write_text(str(wanted_bytes // 1024))
    except OSError as error:
        return f"read-ahead stays at the kernel's default, sequential reads are slower: {setting}: {error.strerror}"
    return None
