"""The one errno boundary: whatever goes wrong in answering a request becomes an errno, and is logged once.

Errors that Forebay raises on purpose carry their errno. Those of the operating system that say something about the
path pass as they are. All else, known or unknown, is EIO: an outage never looks like a missing file.

What a program did wrong (a missing name, a folder read as a file) is its own business and is not logged. Faults are, with
the operation and the path; of each (operation, cause) at most one line in `LOG_EVERY_S`, with the number left out, because a
store that is down fails thousands of reads a second.
"""

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable

from ..errors import ForebayError, ObjectNotFound

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
_KINDS_KEPT = 256

# Raised by views and caches about the path itself. An EIO or ENOSPC of a local disk is ours, not the caller's, to solve.
_ABOUT_THE_PATH = frozenset(
    {
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG,
        errno.ESTALE, errno.ENODATA, errno.ERANGE, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EEXIST, errno.ENOTEMPTY,
        errno.EXDEV, errno.ELOOP, errno.EINTR, errno.EAGAIN, errno.ENOTTY,
    }
)  # fmt: skip


class Boundary:
    """Turns exceptions into errnos. `describe(ino)` gives the path for the log, and may fail. Any thread."""

    def __init__(self, describe: Callable[[int], str]) -> None:
        self._describe = describe
        self._lock = threading.Lock()
        self._muted: dict[tuple[str, str], tuple[float, int]] = {}
        self.errors: dict[str, int] = {}

    def errno_of(self, error: BaseException, operation: str, ino: int) -> int:
        """The positive errno to answer with. Never raises."""
        code, fault = self._judge(error)
        if fault:
            kind = error.kind if isinstance(error, ForebayError) else type(error).__name__
            self._report(error, kind, operation, ino, code)
        return code

    @staticmethod
    def _judge(error: BaseException) -> tuple[int, bool]:
        """(errno, whether it is a fault worth a log line)."""
        if isinstance(error, asyncio.CancelledError):
            # Somebody gave up this request, or something that it waited for was cancelled, which is a fault: programs repeat
            # what ends with EINTR.
            return (errno.EINTR, False) if _is_given_up() else (errno.EIO, True)
        if isinstance(error, ForebayError):
            return error.errno, not isinstance(error, ObjectNotFound)
        if isinstance(error, OSError) and error.errno in _ABOUT_THE_PATH:
            return error.errno, False
        if isinstance(error, FileNotFoundError):
            return errno.ENOENT, False
        if isinstance(error, NotADirectoryError):
            return errno.ENOTDIR, False
        if isinstance(error, IsADirectoryError):
            return errno.EISDIR, False
        if isinstance(error, PermissionError):
            return errno.EACCES, False
        return errno.EIO, True

    def _report(self, error: BaseException, kind: str, operation: str, ino: int, code: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.errors[kind] = self.errors.get(kind, 0) + 1
            last, left_out = self._muted.get((operation, kind), (-LOG_EVERY_S, 0))
            if now - last < LOG_EVERY_S:
                self._muted[operation, kind] = last, left_out + 1
                return
            if len(self._muted) >= _KINDS_KEPT:
                self._muted.clear()
            self._muted[operation, kind] = now, 0
        try:
            path = self._describe(ino)
        except Exception as unknown:
            path = f"inode {ino} ({type(unknown).__name__})"
        more = f" ({left_out} like it before were not logged)" if left_out else ""
        # What we raise on purpose explains itself; anything else needs its traceback.
        trace = None if isinstance(error, ForebayError) else error
        name = errno.errorcode.get(code, str(code))
        log.error("%s %s failed with %s: %s%s", operation, path, name, error or kind, more, exc_info=trace)


def _is_given_up() -> bool:
    """Whether the current task was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
