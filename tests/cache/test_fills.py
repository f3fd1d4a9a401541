"""What a fill holds, and until when."""

import gc
import weakref

from forebay.cache.budget import ByteBudget
from forebay.cache.fills import Fills
from forebay.cache.stats import Counters
from forebay.errors import TierError
from forebay.tests.cache.lab import MIB
from forebay.tiers.understore import Buffer
from forebay.tiers.version import ObjectVersion

VERSION = ObjectVersion("s3://bucket", "k", "e", 64 * MIB)


class Bytes(bytearray):
    """Memory that can be watched."""


async def test_bytes_read_ahead_are_let_go_when_their_reader_has_passed_them() -> None:
    arrived: list[weakref.ref[Bytes]] = []

    async def fetch(version: ObjectVersion, offset: int, size: int) -> Buffer:
        data = Bytes(size)
        arrived.append(weakref.ref(data))
        return data

    async def keep(version: ObjectVersion, offset: int, data: Buffer) -> TierError | None:
        return None

    budget = ByteBudget(16 * MIB)
    fills = Fills(fetch, keep, budget, Counters())
    for offset in (0, MIB):
        fill = fills.start_ahead(VERSION, offset, MIB)
        assert fill is not None
        assert await fill.stored is None
        del fill
    fills.release_behind(VERSION, MIB)
    gc.collect()
    assert [data() is None for data in arrived] == [True, False], "gone at once, whatever timers there are"
    assert budget.taken_bytes == MIB
    await fills.close()
    gc.collect()
    assert arrived[1]() is None
    assert budget.taken_bytes == 0
