"""What is shown of the write side: every number of the status and of the metrics moves when it should."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from forebay.daemon import metrics
from forebay.errors import TierFull
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import Lab


def scraped(lab: Lab) -> dict[str, float]:
    """The metrics of the write side by name, with the kind in braces."""
    status: dict[str, Any] = {"write": asdict(lab.side.status())}
    found = {}
    for row in metrics.TABLE:
        if row.name.startswith("forebay_write_"):
            for labels, number in row.read(status):
                found[row.name.removeprefix("forebay_write_") + "".join(f"{{{label}}}" for label in labels)] = number
    return found


async def until(lab: Lab, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await lab.side.writeback.changed()


async def test_every_number_moves_when_it_should(tmp_path: Path) -> None:
    bucket = MultipartBucket()
    bucket.write("f", b"old")
    lab = await Lab.start(tmp_path, bucket, max_dirty_bytes=200_000, dirty_wait_s=0.2)
    await until(lab, lambda: "tier_free_bytes" in scraped(lab))
    quiet = scraped(lab)
    assert quiet["tier_total_bytes"] > quiet["tier_free_bytes"] > 0
    assert quiet["dirty_limit_bytes"] == 200_000
    silent = {"tier_total_bytes", "tier_free_bytes", "dirty_limit_bytes"}
    assert all(number == 0 for name, number in quiet.items() if name not in silent)

    bucket.fault = lambda kind, key: Fault.REFUSE if kind == "put" else None
    lab.write(b"g", b"x" * 150_000)
    file = lab.create(b"h")
    file.write(0, b"y" * 10)
    assert not lab.side.has_room(100_000)
    with pytest.raises(TierFull):
        await lab.side.wait_for_room(100_000)
    await until(lab, lambda: scraped(lab).get("failures_total{store_unavailable}", 0) > 0)
    busy = scraped(lab)
    assert (busy["dirty_files"], busy["dirty_bytes"], busy["buffered_bytes"]) == (1, 150_000, 10)
    assert busy["oldest_dirty_seconds"] > 0
    assert busy["failing"] == 1
    assert (busy["waits_total"], busy["refused_total"], busy["open_files"]) == (1, 1, 1)
    assert busy["wait_seconds_total"] >= 0.2

    bucket.fault = lambda kind, key: None
    file.release()
    lab.unlink(b"f")
    bucket.write("g", b"theirs")
    await lab.side.flush(timeout_s=60)
    done = scraped(lab)
    assert (done["dirty_files"], done["dirty_bytes"], done["buffered_bytes"], done["failing"]) == (0, 0, 0, 0)
    assert done["held_bytes"] == 150_010
    assert (done["uploaded_files_total"], done["deleted_objects_total"], done["conflicts_total"]) == (2, 1, 1)
    assert done["uploaded_bytes_total"] >= 150_010
    await lab.side.close()
