"""All that Forebay touches of pyfuse3: put on asyncio, and one session with a beginning and an end.

pyfuse3 keeps its session in module globals, so a process has at most one; a second is refused. Importing this module
needs the compiled package, which the lane does not: import it only where the transport is chosen.
"""

import pyfuse3
import pyfuse3.asyncio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    Operations,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    readdir_reply,
)

from ..errors import MountError

__all__ = [
    "EntryAttributes", "FUSEError", "FileHandleT", "FileInfo", "FileNameT", "FlagT", "InodeT", "ModeT", "Operations", "ReaddirToken",
    "RequestContext", "Session", "SetattrFields", "StatvfsData", "readdir_reply",
]  # fmt: skip

pyfuse3.asyncio.enable()


class Session:
    """The one libfuse session of this process, on a connection that is mounted already. Owns the descriptor."""

    _current: "Session | None" = None

    def __init__(self, device: int, operations: Operations) -> None:
        if Session._current is not None:
            raise MountError(
                "this process has a mount through pyfuse3 already", remedy="use another process, or the transport lane"
            )
        # libfuse takes a path of this form for a descriptor that somebody else has mounted.
        pyfuse3.init(operations, f"/dev/fd/{device}", {"fsname=forebay"})
        Session._current = self

    async def serve(self) -> None:
        """Answer requests until the mount is gone."""
        await pyfuse3.main(min_tasks=2, max_tasks=128)

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        try:
            pyfuse3.invalidate_entry(InodeT(parent), FileNameT(name))
        except FileNotFoundError:
            pass

    def close(self) -> None:
        pyfuse3.close(unmount=False)
        Session._current = None
