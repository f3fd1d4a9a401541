"""What a command is pointed at: a SOURCE, or a PATH inside a mount, and the process that holds it, if one runs."""

import os
from dataclasses import dataclass

from .. import config
from ..client import registry
from ..client.control import Control
from ..errors import DaemonUnreachable, NotMounted

HELP = "s3://bucket[/prefix], file:///dir, dataset@ref, or a path inside a mount"


@dataclass(frozen=True)
class Target:
    """`source` as users write it; `path` is relative to its root ("" for all of it); `entry` is the process that holds it."""

    text: str
    source: str
    path: str
    entry: registry.Entry | None

    def control(self) -> Control:
        """Its control socket. Raises NotMounted if no process holds it."""
        if self.entry is None:
            raise NotMounted(
                f"no Forebay process holds {self.source}", remedy="mount it, or start `forebay serve` for it"
            )
        return Control(self.entry.socket)


def find(text: str, settings: config.Settings) -> Target:
    """The target that `text` names. Raises UsageError, NotMounted, or DaemonUnreachable for a mount whose process died."""
    from ..daemon import places, sources  # botocore takes a third of a second to import: not for paths

    if "://" in text or (sources.is_dataset(text) and not os.path.exists(text)):
        name = sources.name_of(text, settings)
        folders = places.places_of(name.folder, settings).all
        return Target(text, name.text, "", registry.holder_of(folders))
    return find_path(text)


def find_path(text: str) -> Target:
    """The target of a path inside a mount."""
    found = registry.mount_of(text)
    if found is not None:
        entry, path = found
        return Target(text, entry.source, path, entry)
    from ..fuse_mount.mount_table import fuse_mount_of

    mounted = fuse_mount_of(text)
    if mounted is not None and mounted.is_forebay:
        raise DaemonUnreachable(
            f"the process behind the mount of {mounted.source} at {mounted.mountpoint} is not known here or has died",
            remedy=f"forebay umount {mounted.mountpoint}, then mount it again",
        )
    raise NotMounted(f"{text} is not inside a Forebay mount", remedy="`forebay status` lists the mounts")
