"""Files written in thousands of places: bounded in pieces, right in content."""

import random

import pytest

from forebay.cache.write.drafts import MAX_EXTENTS
from forebay.cache.write.open_files import OpenFile
from forebay.errors import ForebayError
from forebay.tests.support.write_lab import Lab

PAGE_BYTES = 4096
PAGES = 12_000


async def scatter(lab: Lab, file: OpenFile, model: bytearray, pages: int) -> int:
    """Write a byte into every second page, in random order, as a mount does; the most pieces that the file was in."""
    most = 0
    numbers = list(range(0, pages, 2))
    random.Random(5).shuffle(numbers)
    for number in numbers:
        offset = number * PAGE_BYTES + number % PAGE_BYTES
        file.write(offset, b"!")
        if file.draft.is_fragmented:
            await lab.side.fill_gaps(file)
        model.extend(bytes(max(offset + 1 - len(model), 0)))
        model[offset] = ord("!")
        most = max(most, len(file.draft.extents))
    return most


async def test_gaps_over_an_object_are_filled_from_it(lab: Lab) -> None:
    model = bytearray(random.Random(1).randbytes(PAGES * PAGE_BYTES))
    lab.bucket.write("big", bytes(model))
    file = lab.side.open(b"big", lab.shown(b"big"), writable=True)
    assert await scatter(lab, file, model, PAGES) <= MAX_EXTENTS + 1
    file.release()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents()["big"] == model
    assert lab.side.files.buffered_bytes == 0


async def test_holes_behind_the_end_of_the_object_stay_zeros(lab: Lab) -> None:
    model = bytearray(random.Random(1).randbytes(10 * PAGE_BYTES))
    lab.bucket.write("big", bytes(model))
    file = lab.side.open(b"big", lab.shown(b"big"), writable=True)
    assert await scatter(lab, file, model, PAGES) <= MAX_EXTENTS + 1
    file.release()
    await lab.side.flush(timeout_s=120)
    assert lab.bucket.contents()["big"] == model


async def test_a_gap_is_not_filled_with_what_it_showed_before(lab: Lab) -> None:
    model = bytearray(random.Random(1).randbytes(PAGES * PAGE_BYTES))
    lab.bucket.write("big", bytes(model))
    file = lab.side.open(b"big", lab.shown(b"big"), writable=True)
    for number in range(0, PAGES, 2):
        file.write(number * PAGE_BYTES, b"!")
    gaps = file.draft.gaps_to_fill()
    written, cut = gaps[0], max(gaps, key=lambda gap: gap.offset)
    file.write(written.offset + 1, b"new")
    assert file.draft.fill(written, written.offset, bytes(written.size)) == 0
    file.truncate(cut.offset)
    file.truncate(PAGES * PAGE_BYTES)
    assert file.draft.fill(cut, cut.offset, bytes(cut.size)) == 0
    file.release()


async def test_a_store_that_is_away_fails_no_write_for_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.bucket.write("big", bytes(PAGES * PAGE_BYTES))
    file = lab.side.open(b"big", lab.shown(b"big"), writable=True)
    for number in range(0, PAGES, 2):
        file.write(number * PAGE_BYTES, b"!")
    lab.bucket.objects.clear()
    await lab.side.fill_gaps(file)
    monkeypatch.setattr("forebay.cache.write.base_reads.FAR_TOO_MANY_EXTENTS", MAX_EXTENTS)
    with pytest.raises(ForebayError):
        await lab.side.fill_gaps(file)
    file.draft.unlinked = True
    file.release()
