"""What the write side asks of the listing that a mount shows: has it caught up with what was written?"""

from ..cache.namespace import Namespace


class WrittenListing:
    """`cache.write.retirement.Listing` over a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def agrees(self, key: bytes, etag: str | None) -> bool:
        folder, slash, name = key.rpartition(b"/")
        state = self._namespace.hold((folder + slash).decode("utf-8", "surrogateescape"))
        try:
            found = self._namespace.peek(state, name)
            if found is None:
                return False
            entry = found.entry(name)
        finally:
            self._namespace.release(state)
        if entry is None:
            return etag is None
        return not entry.is_folder and entry.etag == etag

    async def refresh(self, prefix: bytes) -> None:
        self.expire(prefix)

    def expire(self, prefix: bytes) -> None:
        self._namespace.expire(prefix.decode("utf-8", "surrogateescape"))
