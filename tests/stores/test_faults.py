"""What networks and servers do to clients, and what comes out of the S3 store: data that is right, or the right error."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator

import pytest

from forebay.errors import (
    BucketNotFound,
    ObjectChanged,
    ObjectNotFound,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)
from forebay.tests.support.fault_proxy import Fault, FaultProxy
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.s3 import S3Store
from forebay.tiers.version import ObjectVersion

CONTENT = bytes(range(256)) * 1000
HASTY_S = 5


async def opened(s3: S3Server, proxy: FaultProxy, timeout_s: float) -> AsyncIterator[S3Store]:
    options = StoreOptions(endpoint_url=proxy.url, timeout_s=timeout_s)
    store, _ = open_store(f"s3://{s3.new_bucket('faults')}", options)
    assert isinstance(store, S3Store)
    yield store
    proxy.heal()
    await store.close()


@pytest.fixture
async def store(s3: S3Server, proxy: FaultProxy) -> AsyncIterator[S3Store]:
    """A patient store behind the proxy, for what must succeed in the end also on a busy machine."""
    async for store in opened(s3, proxy, 20):
        yield store


@pytest.fixture
async def hasty(s3: S3Server, proxy: FaultProxy) -> AsyncIterator[S3Store]:
    """A store that gives up soon, for what must fail; with one object, `key`."""
    async for store in opened(s3, proxy, HASTY_S):
        await store.put("key", CONTENT)
        yield store


@pytest.fixture
async def version(store: S3Store) -> ObjectVersion:
    return store.version(await store.put("key", CONTENT))


async def version_of(store: S3Store) -> ObjectVersion:
    info = await store.head("key")
    assert info is not None
    return store.version(info)


def is_down(store: S3Store) -> bool:
    return store.counters.down_since_s is not None


PASSING = [
    Fault.answer(500, "InternalError"),
    Fault.answer(503, "SlowDown"),
    Fault.answer(429),
    Fault.reset(),
    Fault.reset(after_bytes=10),
    Fault.truncate(10),
    Fault.lose_answer(),
    Fault.set_header("ETag", '"00000000000000000000000000000000"'),
    Fault.answer(404, "NoSuchKey", only="GET"),
    Fault.answer(412, "PreconditionFailed", only="GET"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.name}{fault.status or fault.after_bytes or ''}")
async def test_a_read_survives_a_passing_fault(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion, fault: Fault
) -> None:
    for offset, size in [(0, len(CONTENT)), (1000, 5000)]:
        proxy.script = [fault]
        assert bytes(await store.get_range(version, offset, size)) == CONTENT[offset : offset + size]
        assert not proxy.script
    assert store.counters.retries >= 2
    assert store.counters.in_flight == store.counters.waiting == 0


async def test_a_read_survives_a_connection_that_hangs(hasty: S3Store, proxy: FaultProxy) -> None:
    version = await version_of(hasty)
    proxy.script = [Fault.hang()]
    assert bytes(await hasty.get_range(version, 0, 100)) == CONTENT[:100]


async def test_flipped_bytes_of_a_whole_small_object_are_not_served(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion
) -> None:
    proxy.script = [Fault.flip(77, only="GET")]
    assert bytes(await store.get_range(version, 0, len(CONTENT))) == CONTENT
    proxy.fault = Fault.flip(77, only="GET")
    with pytest.raises(StoreCorrupt, match="key"):
        await store.get_range(version, 0, len(CONTENT))


@pytest.mark.parametrize(
    "fault", [Fault.truncate(10, only="GET"), Fault.set_header("ETag", '"beef"', only="GET")], ids=lambda f: f.name
)
async def test_lasting_wrong_answers_are_an_error(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion, fault: Fault
) -> None:
    proxy.fault = fault
    with pytest.raises((StoreCorrupt, StoreUnavailable)):
        await store.get_range(version, 0, len(CONTENT))


@pytest.mark.parametrize("fault", [Fault.answer(503), Fault.reset(), Fault.hang()], ids=lambda fault: fault.name)
async def test_an_outage_costs_a_bounded_wait_once_and_ends_by_itself(
    hasty: S3Store, proxy: FaultProxy, fault: Fault
) -> None:
    version = await version_of(hasty)
    proxy.fault = fault
    started = time.monotonic()
    results = await asyncio.gather(
        hasty.get_range(version, 0, 100),
        hasty.list_page(""),
        hasty.head("key"),
        hasty.head("other"),
        return_exceptions=True,
    )
    assert all(isinstance(result, StoreUnavailable) for result in results), results
    assert time.monotonic() - started < HASTY_S + 60
    assert is_down(hasty)
    # Known to be down: most calls do not wait and do not ask.
    proxy.forget()
    started = time.monotonic()
    refused = await asyncio.gather(*(hasty.head("key") for _ in range(200)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in refused)
    assert time.monotonic() - started < 60
    assert proxy.count() <= 3
    proxy.heal()
    deadline = time.monotonic() + 120
    while True:  # probes are let through twice a second
        try:
            data = await hasty.get_range(version, 0, 100)
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            break
    assert bytes(data) == CONTENT[:100]
    assert not is_down(hasty)
    assert (await hasty.list_page("")).keys == ["key"]


async def test_refused_connections_are_waited_out_when_short(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion
) -> None:
    proxy.refuse()
    reading = asyncio.ensure_future(store.get_range(version, 0, 100))
    await asyncio.sleep(0.5)
    assert not reading.done()
    await asyncio.to_thread(proxy.accept)
    assert bytes(await reading) == CONTENT[:100]


async def test_an_outage_is_never_nothing(hasty: S3Store, proxy: FaultProxy) -> None:
    proxy.fault = Fault.answer(503, "SlowDown")
    for call in (hasty.list_page(""), hasty.head("key"), hasty.check()):
        with pytest.raises(StoreUnavailable):
            await call


async def test_denied_is_said_at_once(store: S3Store, proxy: FaultProxy, version: ObjectVersion) -> None:
    proxy.fault = Fault.answer(403, "AccessDenied")
    started = time.monotonic()
    for call in (store.get_range(version, 0, 10), store.list_page(""), store.head("key"), store.put("k", b"")):
        with pytest.raises(StoreDenied) as caught:
            await call
        assert "secret-of-the-tests" not in str(caught.value)
    assert time.monotonic() - started < 15  # the store's patience is 20 s
    assert store.counters.down_since_s is None


async def test_a_request_that_is_refused_for_good_is_not_repeated(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion
) -> None:
    proxy.fault = Fault.answer(400, "InvalidRequest")
    for call in (store.get_range(version, 0, 10), store.list_page(""), store.put("k", b"")):
        proxy.forget()
        with pytest.raises(StoreError, match="400"):
            await call
        assert proxy.count() <= 2


async def test_a_clock_that_is_wrong_is_named(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fault = Fault.answer(403, "RequestTimeTooSkewed")
    with pytest.raises(StoreDenied, match="clock"):
        await store.list_page("")


async def test_a_bucket_that_vanished_is_not_a_missing_object(
    store: S3Store, proxy: FaultProxy, version: ObjectVersion
) -> None:
    proxy.fault = Fault.answer(404, "NoSuchBucket")
    with pytest.raises(BucketNotFound):
        await store.get_range(version, 0, 10)
    with pytest.raises(BucketNotFound):
        await store.list_page("")


async def test_listing_that_is_cut_is_asked_again(store: S3Store, proxy: FaultProxy, version: ObjectVersion) -> None:
    for fault in (Fault.truncate(100), Fault.truncate(0), Fault.reset(50)):
        proxy.script = [fault]
        assert (await store.list_page("")).keys == ["key"]
    proxy.fault = Fault.truncate(100)
    with pytest.raises(StoreCorrupt):
        await store.list_page("")


async def test_a_put_whose_answer_was_lost_is_not_a_conflict_with_itself(store: S3Store, proxy: FaultProxy) -> None:
    proxy.script = [Fault.lose_answer(only="PUT")]
    first = await store.put("once", b"1", if_absent=True)
    proxy.script = [Fault.lose_answer(only="PUT")]
    second = await store.put("once", b"22", if_match=first.etag)
    assert bytes(await store.get_range(store.version(second), 0, 2)) == b"22"
    proxy.script = [Fault.lose_answer(only="PUT")]
    copied = await store.copy(store.version(second), "copied", if_absent=True)
    assert bytes(await store.get_range(store.version(copied), 0, 2)) == b"22"
    with pytest.raises(ObjectChanged):
        await store.put("once", b"3", if_match=first.etag)


async def test_a_deletion_that_was_sent_twice_says_so(store: S3Store, proxy: FaultProxy) -> None:
    for name in ("once", "twice"):
        await store.put(name, b"1")
    proxy.script = [Fault.lose_answer(only="DELETE")]
    assert not await store.delete("twice")
    assert await store.delete("once")
    assert await store.head("twice") is None


async def test_a_completion_whose_answer_was_lost_is_recognised(store: S3Store, proxy: FaultProxy) -> None:
    upload = await store.create_upload("parts")
    part = await store.upload_part("parts", upload, 1, b"x" * 1000)
    proxy.script = [Fault.lose_answer(only="POST")]
    info = await store.complete_upload("parts", upload, [part])
    assert info.size == 1000
    assert bytes(await store.get_range(store.version(info), 0, 1000)) == b"x" * 1000


async def test_cancelling_leaves_nothing_running(store: S3Store, proxy: FaultProxy, version: ObjectVersion) -> None:
    proxy.fault = Fault.hang()
    calls = [asyncio.ensure_future(c) for c in (store.get_range(version, 0, 10), store.list_page(""), store.head("a"))]
    await asyncio.to_thread(proxy.wait_for, 4)  # the put of the fixture, and these
    for call in calls:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert store.counters.in_flight == store.counters.waiting == 0
    proxy.fault = None
    assert bytes(await store.get_range(version, 0, 10)) == CONTENT[:10]


async def test_an_object_replaced_behind_a_cut_read_is_never_mixed(
    store: S3Store, s3: S3Server, proxy: FaultProxy, version: ObjectVersion
) -> None:
    client = s3.client()
    bucket = store.id.removeprefix("s3://").partition("@")[0]
    proxy.script = [Fault.reset(after_bytes=1000, only="GET")]
    proxy.on_request = lambda request: (
        client.put_object(Bucket=bucket, Key="key", Body=b"other" * 10_000) if request.kind == "GET" else None
    )
    try:
        with pytest.raises(ObjectChanged):
            await store.get_range(version, 0, len(CONTENT))
    finally:
        proxy.on_request = None
    await store.delete("key")
    with pytest.raises(ObjectNotFound):
        await store.get_range(version, 0, 10)


async def test_a_slow_store_is_slow_but_right(store: S3Store, proxy: FaultProxy, version: ObjectVersion) -> None:
    proxy.fault = Fault.slow(200_000, only="GET")
    assert bytes(await store.get_range(version, 0, 100_000)) == CONTENT[:100_000]


async def test_credentials_are_in_no_log_and_no_error(
    store: S3Store, s3: S3Server, proxy: FaultProxy, version: ObjectVersion, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything logged at the lowest level, by all libraries, and every error with its causes."""
    caplog.set_level(1)
    await store.get_range(version, 0, 10)
    said: list[str] = []
    for fault in (
        Fault.answer(403, "SignatureDoesNotMatch"),
        Fault.answer(400, "Odd"),
        Fault.answer(404, "NoSuchBucket"),
    ):
        proxy.fault = fault
        for call in (store.get_range(version, 0, 10), store.list_page(""), store.head("a//b"), store.put("k", b"v")):
            try:
                await call
            except Exception as error:
                said += traceback.format_exception(error)
    assert said
    for secret in (s3.access_key, s3.secret_key):
        assert secret not in "".join(said)
        assert secret not in caplog.text
    assert s3.secret_key not in repr(vars(store)) + repr(store)
