"""Unmount, and wait until the process behind the mount has ended and its cache folder is free.

What was written and is not in the bucket yet stays safe in the write tier, and goes on with the next mount; --flush waits for it.
Works as well when that process is dead. A mount in use is refused unless it is to go anyway: --lazy takes the name away
now and the mount when the last user has closed; --force makes whoever still reads fail at once, and kills a process that does not end.
"""

import argparse
import contextlib
import os
import signal

from .. import config
from ..client import registry
from ..client.control import Control
from ..errors import DaemonUnreachable
from . import flush, frame

WAIT_TIMEOUT_S = 60.0
FORCE_TIMEOUT_S = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("--flush", action="store_true", help="first wait until what was written is in the bucket")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--lazy", action="store_true", help="detach now, end when the last user has closed its files")
    how.add_argument("--force", action="store_true", help="users of the mount get errors, and it ends now")
    frame.add_json(parser)


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    from ..fuse_mount.mount_table import resolve
    from ..fuse_mount.mountpoint import detach

    path = resolve(args.mountpoint)
    entry = next((entry for entry in registry.entries() if entry.mountpoint == path), None)
    if args.flush and entry is not None:
        flush.wait(Control(entry.socket), "", None, as_json=False)
    detach(path, lazy=args.lazy, force=args.force)
    ended = entry is None or args.lazy or _wait(entry, force=args.force)
    if args.json:
        frame.emit_json({"mountpoint": path, "unmounted": True, "ended": ended and not args.lazy})
    if not ended:
        assert entry is not None
        raise DaemonUnreachable(
            f"{path} is unmounted, but its process {entry.pid} has not ended within {WAIT_TIMEOUT_S:.0f} s",
            remedy=f"see its log {entry.log_file}" if entry.log_file else "end it with a signal",
        )
    return 0


def _wait(entry: registry.Entry, *, force: bool) -> bool:
    """Until the process has ended; a process that does not is killed, if it is to end by force."""
    if not force:
        return registry.wait_until_gone(entry, WAIT_TIMEOUT_S)
    if not registry.wait_until_gone(entry, FORCE_TIMEOUT_S):
        # That it is still in the registry proves that the number is still this process's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    return registry.wait_until_gone(entry, WAIT_TIMEOUT_S)
