"""A mount without a cache, for tests of names, versions and writing."""

from forebay.tiers.understore import Buffer, UnderStore
from forebay.tiers.version import ObjectVersion


class StoreReads:
    """Reads straight from a store; stands in for the block cache."""

    def __init__(self, store: UnderStore) -> None:
        self._store = store

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int) -> Buffer | None:
        return None

    async def read(
        self, version: ObjectVersion, offset: int, size: int, *, reader: int, timeout_s: float | None = None
    ) -> Buffer:
        return await self._store.get_range(version, offset, size)

    def forget_reader(self, reader: int) -> None:
        pass
