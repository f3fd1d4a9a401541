"""A writable mount for tests: a real mount over a bucket in memory or a real one, served from a thread of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forebay.cache.namespace import Namespace, NamespaceOptions
from forebay.cache.write.options import WriteOptions
from forebay.cache.write.records import SqliteRecords
from forebay.cache.write.write_side import WriteSide
from forebay.fuse_mount.live_view import LiveView
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.writable import writable_kit
from forebay.fuse_mount.writable_view import WritableView
from forebay.fuse_mount.writing import Writing
from forebay.fuse_mount.written_listing import WrittenListing
from forebay.tests.support.fuse import ServedMount, served
from forebay.tests.support.store_reads import StoreReads
from forebay.tiers.durable import FolderTier
from forebay.tiers.understore import MultipartStore


class WrittenMount:
    """A served writable mount, and what is behind it."""

    def __init__(self, mount: ServedMount, side: WriteSide, view: WritableView) -> None:
        self.path = mount.path
        self.mount = mount
        self.side = side
        self.view = view

    def flush(self, timeout_s: float = 60.0) -> None:
        self.mount.run(self.side.flush(timeout_s=timeout_s))


@contextlib.contextmanager
def written_mount(
    store: MultipartStore, tier: Path, mountpoint: Path, *, prefix: str = "", transport: str = "lane",
    metadata_ttl_s: float = 60.0, **options: Any,
) -> Iterator[WrittenMount]:  # fmt: skip
    """Mount writable, serve while inside, unmount, and stop; what is dirty stays in `tier`."""
    quick = {"writeback_delay_s": 0.05, "retry_first_s": 0.01, "retry_max_s": 0.1, "retire_after_s": 0.0}
    namespace = Namespace(store, prefix, NamespaceOptions(metadata_ttl_s=metadata_ttl_s))
    live = LiveView(namespace)
    late: dict[str, Any] = {}
    side = WriteSide(
        tier=FolderTier.at(tier, free_space_ratio=0.0), records=SqliteRecords(tier / "records.db"), store=store,
        prefix=prefix.encode(), options=WriteOptions(**{**quick, **options}), listing=WrittenListing(namespace),
        in_use=lambda node_id: late["view"].in_use(node_id), keys_read=lambda: late["writing"].keys_read(),
    )  # fmt: skip
    view = late["view"] = WritableView(live, side)
    writing = late["writing"] = Writing(view, side)
    mount_options = MountOptions(read_only=False, transport=transport)  # type: ignore[arg-type]

    with served(
        view, StoreReads(store), mountpoint, mount_options, kit=writable_kit(writing),
        before=side.start, after=lambda: _end(side, namespace),
    ) as mount:  # fmt: skip
        yield WrittenMount(mount, side, view)


async def _end(side: WriteSide, namespace: Namespace) -> None:
    side.state.validate()
    await side.close()
    await namespace.close()
