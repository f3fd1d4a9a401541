"""Durable tiers: where dirty bytes are safe until the under store has them. The protocol is in `tier.py`.

/dir                                              a folder
rados://POOL[?conf=FILE&keyring=FILE&client=NAME]  a pool of Ceph
"""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ...errors import UsageError
from .folder import FolderTier
from .tier import DurableFile, DurableTier, Room

__all__ = ["DurableFile", "DurableTier", "FolderTier", "Room", "is_rados", "open_durable_tier"]

CEPH_CONF = Path("/etc/ceph/ceph.conf")


def is_rados(where: str) -> bool:
    return where.startswith("rados://")


def open_durable_tier(where: str, name: str, *, free_space_ratio: float = 0.05, shared: bool = False) -> DurableTier:
    """The tier that `where` names; `name` keeps the data of several sources in it apart. `shared`: others may have it open too.

    Raises UsageError for nonsense, TierInUse, TierFailed.
    """
    if not is_rados(where):
        if "://" in where:
            raise UsageError(f"{where!r} is no write tier", remedy="give a folder, or rados://POOL")
        return FolderTier.at(Path(where) / name, free_space_ratio=free_space_ratio, shared=shared)
    parts = urlsplit(where)
    given = parse_qs(parts.query, strict_parsing=bool(parts.query))
    unknown = given.keys() - {"conf", "keyring", "client"}
    if not parts.netloc or parts.path.strip("/") or unknown:
        raise UsageError(
            f"{where!r} is no write tier", remedy="write rados://POOL[?conf=FILE&keyring=FILE&client=NAME]"
        )
    from .rados import RadosTier  # loads librados: only for those who use it

    return RadosTier(
        parts.netloc,
        conf=Path(given["conf"][0]) if "conf" in given else CEPH_CONF,
        keyring=Path(given["keyring"][0]) if "keyring" in given else None,
        client=given.get("client", ["client.admin"])[0],
        namespace=f"forebay-write-{name}",
    )
