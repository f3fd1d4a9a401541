"""Verify finds exactly what drifted, by the cheaper way of asking, and never takes an outage for drift."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import StoreUnavailable, UsageError
from forebay.snapshots import verify
from forebay.snapshots.object_stores import ObjectStores
from forebay.snapshots.verify import Drift, Problem, Verifier, VerifyReport
from forebay.tests.support.memory_bucket import MemoryBucket, etag_of
from forebay.tests.support.snapshot_rows import Row, batches


def recorded(bucket: MemoryBucket, keys: Sequence[str]) -> list[Row]:
    """Entries of the objects as they are now; the path is the key without its first folder."""
    return [
        Row(
            key.partition("/")[2],
            size=len(bucket.objects[key]),
            key=key,
            etag=etag_of(bucket.objects[key]),
            store=bucket.id,
        )
        for key in keys
    ]


async def run(rows: Sequence[Row], *buckets: MemoryBucket) -> tuple[dict[str, Drift], VerifyReport]:
    by_name = {bucket.id: bucket for bucket in buckets}
    async with ObjectStores(by_name.__getitem__) as stores:
        verifier = Verifier(batches(rows, 50), len(rows), stores)
        found = [drift async for drift in verifier.drift()]
    assert [drift.path for drift in found] == sorted((d.path for d in found), key=str.encode)
    assert verifier.report.checked == len(rows)
    assert verifier.report.drift_count == len(found)
    return {drift.path: drift for drift in found}, verifier.report


names = st.text("ab/-.\U0001f600\uffff", min_size=1, max_size=5).filter(lambda t: "//" not in t and t.strip("/") == t)


@settings(max_examples=60, deadline=None)
@given(
    before=st.dictionaries(names, st.binary(max_size=3), max_size=60),
    after=st.dictionaries(names, st.one_of(st.none(), st.binary(max_size=3)), max_size=30),
    page_keys=st.integers(1, 7),
    window=st.integers(1, 40),
    min_entries=st.integers(1, 5),
)
async def test_exactly_what_changed_is_reported(
    before: Mapping[str, bytes], after: Mapping[str, bytes | None], page_keys: int, window: int, min_entries: int
) -> None:
    bucket = MemoryBucket(page_keys=page_keys)
    bucket.objects = {f"p/{name}": data for name, data in before.items()}
    rows = recorded(bucket, list(bucket.objects))
    for name, data in after.items():
        if data is None:
            bucket.objects.pop(f"p/{name}", None)
        else:
            bucket.objects[f"p/{name}"] = data
    expected = {}
    for row in rows:
        now = bucket.objects.get(row.full_key)
        if now is None:
            expected[row.path] = Problem.MISSING
        elif now != before[row.path]:
            expected[row.path] = Problem.OVERWRITTEN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "WINDOW_ENTRIES", window)
        patch.setattr(verify, "LISTING_MIN_ENTRIES", min_entries)
        found, _ = await run(rows, bucket)
    assert {path: drift.problem for path, drift in found.items()} == expected


async def test_close_entries_are_listed_and_scattered_ones_are_asked_one_by_one() -> None:
    bucket = MemoryBucket()
    bucket.objects = {f"dense/{n:05}": b"x" for n in range(3000)}
    bucket.objects |= {f"few/{n}/only": b"y" for n in range(20)}
    found, report = await run(recorded(bucket, list(bucket.objects)), bucket)
    assert found == {}
    assert (report.heads, report.listings) == (20, 3)


async def test_a_listing_of_a_bucket_with_far_more_in_it_is_given_up() -> None:
    bucket = MemoryBucket(page_keys=10)
    bucket.objects = {f"d/{n:05}": b"x" for n in range(5000)}
    rows = recorded(bucket, [f"d/{n:05}" for n in range(0, 5000, 100)])
    found, report = await run(rows, bucket)
    assert found == {}
    assert report.listings <= 2 + len(rows) // verify.HEADS_PER_PAGE
    assert report.heads >= 45


async def test_a_recorded_version_id_is_asked_for_and_the_newest_one_does_not_matter() -> None:
    bucket = MemoryBucket()
    bucket.objects = {f"d/{n}": b"new" for n in range(50)}
    bucket.old_versions = {(f"d/{n}", "v1"): b"old" for n in range(49)}
    rows = [
        Row(f"{n}", size=3, key=f"d/{n}", etag=etag_of(b"old"), store=bucket.id, version_id="v1") for n in range(50)
    ]
    found, report = await run(rows, bucket)
    assert {path: drift.problem for path, drift in found.items()} == {"49": Problem.MISSING}
    assert report.listings == 0


async def test_what_is_there_instead_is_told() -> None:
    bucket = MemoryBucket()
    bucket.objects = {"d/a": b"one"}
    rows = recorded(bucket, ["d/a"])
    bucket.objects["d/a"] = b"other"
    found, _ = await run(rows, bucket)
    drift = found["a"]
    assert (drift.found_etag, drift.found_size) == (etag_of(b"other"), 5)
    assert drift.version.key == "d/a"


async def test_an_outage_is_an_error_and_not_a_thousand_missing_objects() -> None:
    bucket = MemoryBucket()
    bucket.objects = {f"d/{n}": b"x" for n in range(100)}
    rows = recorded(bucket, list(bucket.objects))
    bucket.failure = StoreUnavailable("s3://memory does not answer")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await run(rows, bucket)


async def test_a_version_recorded_at_another_endpoint_is_refused() -> None:
    here = MemoryBucket("s3://b@here:1")
    async with ObjectStores(lambda url: here) as stores:
        assert stores.get("s3://b@here:1") is here
        with pytest.raises(UsageError, match=r"has objects in s3://b@there:2, but s3://b is s3://b@here:1"):
            stores.get("s3://b@there:2")
