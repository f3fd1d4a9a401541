"""Extended attributes `user.forebay.*`: which version a file is, where it is stored, and how much of it is here.

The view's own attributes (labels, snapshot) come first; those about content and cache are added for files.

They answer to their names and are in no list, as CephFS does it with its own: programs that copy attributes (`rsync -X`,
`tar --xattrs`, `cp --preserve=xattr`) would give them to the copies, or fail where they cannot.
"""

import errno
from collections.abc import Callable, Mapping

from ..cache.block_cache import BlockCache
from ..tiers.version import ObjectVersion
from .view import Kind, View

PREFIX = b"user.forebay."

# What the cache knows of a version, by attribute name without the prefix (`cached`, `tier`, `pinned`).
CacheFacts = Callable[[ObjectVersion], Mapping[str, str]]


class Xattrs:
    """Attributes of every inode of a mount. `facts` must not do I/O to a store."""

    def __init__(self, view: View, facts: CacheFacts) -> None:
        self._view = view
        self.facts = facts

    def all(self, ino: int) -> dict[bytes, bytes]:
        """Every attribute by its full name. Raises what the view raises for an unknown inode."""
        found = {name.encode(): value for name, value in self._view.xattrs(ino).items()}
        if self._view.node(ino).kind != Kind.FILE:
            return found
        version = self._view.version(ino)
        found[PREFIX + b"store"] = _bytes(version.store)
        found[PREFIX + b"key"] = _bytes(version.key)
        found[PREFIX + b"etag"] = _bytes(version.etag)
        if version.version_id is not None:
            found[PREFIX + b"version_id"] = _bytes(version.version_id)
        for name, value in self.facts(version).items():
            found[PREFIX + name.encode()] = _bytes(value)
        return found

    def value(self, ino: int, name: bytes) -> bytes:
        """One attribute. Raises OSError(ENODATA) for any other name, security.* and POSIX ACLs included."""
        if not name.startswith(PREFIX):
            # The kernel and `ls -l` ask every file for these: no work for them.
            raise OSError(errno.ENODATA, "no such attribute")
        found = self.all(ino).get(name)
        if found is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return found

    def names(self, ino: int) -> list[bytes]:
        """The listed ones: those that programs set; none here. Raises what the view raises for an unknown inode."""
        self._view.node(ino)
        return []


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def cache_facts(cache: BlockCache) -> CacheFacts:
    """What a block cache knows: `cached` (the fraction that is here), `tier` (where: ram, ssd, both or none), `pinned`."""

    def facts(version: ObjectVersion) -> Mapping[str, str]:
        parts = cache.cached(version)
        tiers = [name for name, held_bytes in (("ram", parts.ram_bytes), ("ssd", parts.ssd_bytes)) if held_bytes]
        pinned = cache.pins.is_pinned(version.digest)
        # Cut, not rounded: 1.000 means all of it.
        cached = int(parts.fraction * 1000) / 1000
        return {"cached": f"{cached:.3f}", "tier": "+".join(tiers) or "none", "pinned": "yes" if pinned else "no"}

    return facts
