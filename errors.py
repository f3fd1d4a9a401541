"""Every error that Forebay raises on purpose, grouped by what the one who catches it does about it.

An error says what failed, on what, and what to do (`remedy`). Three things that look alike are kept apart:
a miss is `None`, a lost race is a returned outcome, and a failure is one of the exceptions here.

Each class carries a stable `kind` (for logs, metrics and `--json`), the `exit_code` of a command that ends
with it, and the `errno` with which the FUSE boundary answers. Messages never hold credentials.
"""

import errno as _errno
from typing import ClassVar


class ForebayError(Exception):
    """Base of all. `str(error)` is the whole message for a person: what failed, and the remedy if there is one."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


# --- The caller asked for something wrong: do not retry, tell the user. --------------------------------


class UsageError(ForebayError):
    """A flag, an argument or a combination of them makes no sense."""

    kind = "usage"
    exit_code = 2
    errno = _errno.EINVAL


class ConfigError(UsageError):
    """A configuration file or variable is wrong; the message names the file and the key."""

    kind = "config"
    exit_code = 3


# --- The under store: sorted by what to do. -------------------------------------------------------------


class StoreError(ForebayError):
    """Base of what an under store answers when it does not answer with data."""

    kind = "store"
    exit_code = 10


class StoreUnavailable(StoreError):
    """Refused, reset, timed out, throttled or 5xx, after all retries within the deadline. Worth another try later."""

    kind = "store_unavailable"
    exit_code = 11


class StoreDenied(StoreError):
    """No credentials, wrong credentials, or no permission. Another try does not help."""

    kind = "store_denied"
    exit_code = 12
    errno = _errno.EACCES


class BucketNotFound(StoreError):
    """The bucket, or the folder of a `file://` source, does not exist.

    In a mount it is an I/O error: a name below must not seem to be missing because the whole bucket is.
    """

    kind = "bucket_not_found"
    exit_code = 13


class ObjectNotFound(StoreError):
    """The object, or the version of it that was asked for, is not there (any more)."""

    kind = "object_not_found"
    exit_code = 14
    errno = _errno.ENOENT


class ObjectChanged(StoreError):
    """The object was overwritten: its present version is not the one asked for. Other bytes are never served."""

    kind = "object_changed"
    exit_code = 15
    errno = _errno.ESTALE


class StoreCorrupt(StoreError):
    """The store answered with bytes that cannot be those of the object (length or checksum), repeatedly."""

    kind = "store_corrupt"
    exit_code = 16


class BaseGone(StoreError):
    """A file was changed in part, and the object version it was changed from was replaced or deleted by somebody else.

    The changed ranges are kept in the write tier; the unchanged ones are nowhere any more.
    """

    kind = "base_gone"
    exit_code = 17


# --- A local tier. ---------------------------------------------------------------------------------------


class TierError(ForebayError):
    """Base of what goes wrong with a cache folder."""

    kind = "tier"
    exit_code = 20


class TierInUse(TierError):
    """Another process holds the cache folder; the message names it."""

    kind = "cache_in_use"
    exit_code = 21
    errno = _errno.EBUSY


class TierFull(TierError):
    """No room, and nothing may be evicted (pins, limits, or the disk itself is full). The bytes are simply not cached."""

    kind = "tier_full"
    exit_code = 22
    errno = _errno.ENOSPC


class TierFailed(TierError):
    """The disk or folder fails (I/O error, read-only, gone). The tier is taken out of service; reads go on without it."""

    kind = "tier_failed"
    exit_code = 23


class DirtyDataMissing(TierError):
    """Bytes that were acked and are not yet in the under store are not in the write tier. Never passed over silently."""

    kind = "dirty_data_missing"
    exit_code = 24


class MetadataTooLarge(TierError):
    """Extended attributes of a file go beyond what the metadata of an object can hold."""

    kind = "metadata_too_large"
    exit_code = 25
    errno = _errno.ENOSPC


class WriterReplaced(TierError):
    """Another process has taken over the writing of this bucket, because this one seemed to be dead. Nothing acked is lost."""

    kind = "writer_replaced"
    exit_code = 26


class OpenElsewhere(TierError):
    """Another mount has the file open for writing, and did not close it in time; the message names it."""

    kind = "open_elsewhere"
    exit_code = 27
    errno = _errno.EBUSY


# --- The mount and its commands. -------------------------------------------------------------------------


class MountError(ForebayError):
    """The mount cannot be made or removed: no /dev/fuse, a busy or non-empty mountpoint, no permission."""

    kind = "mount"
    exit_code = 30


class NotMounted(MountError):
    """The path is not inside a Forebay mount."""

    kind = "not_mounted"
    exit_code = 31


class DaemonUnreachable(MountError):
    """The process behind a mount does not answer on its control socket."""

    kind = "daemon_unreachable"
    exit_code = 32


class Incomplete(ForebayError):
    """The work ended, but not all of it was done (a prefetch with objects missing, an import with rejects)."""

    kind = "incomplete"
    exit_code = 40


# --- Snapshots. -----------------------------------------------------------------------------------------


class SnapshotError(ForebayError):
    """Base of what goes wrong with datasets and their versions."""

    kind = "snapshot"
    exit_code = 50


class RefNotFound(SnapshotError):
    """No such dataset, tag, branch, version number or id; the message lists near ones."""

    kind = "ref_not_found"
    exit_code = 51
    errno = _errno.ENOENT


class RefMoved(SnapshotError):
    """Another writer moved the branch first; nothing was changed. Take the new head and try again."""

    kind = "ref_moved"
    exit_code = 52


class ManifestError(SnapshotError):
    """A line of a manifest cannot be used; the message names the line and the reason."""

    kind = "manifest"
    exit_code = 53


class PageCorrupt(SnapshotError):
    """A page of a snapshot is missing or its bytes do not match its name. Other versions are not touched."""

    kind = "page_corrupt"
    exit_code = 54


class MetadataUnavailable(SnapshotError):
    """MongoDB (or the SQLite file) does not answer within the deadline."""

    kind = "metadata_unavailable"
    exit_code = 55


class IndexDamaged(SnapshotError):
    """The tree index of a snapshot mount does not match its checksum. It is built again from the snapshot."""

    kind = "index_damaged"
    exit_code = 56


class DriftFound(SnapshotError):
    """Objects of a version are gone or overwritten. The version itself is whole; reading those objects fails."""

    kind = "drift"
    exit_code = 59


def class_of_kind(kind: str, base: type[ForebayError] = ForebayError) -> type[ForebayError]:
    """The class with that `kind`; ForebayError itself if there is none (an error of a newer version)."""
    waiting = [base]
    while waiting:
        found = waiting.pop()
        if found.kind == kind:
            return found
        waiting += found.__subclasses__()
    return ForebayError
