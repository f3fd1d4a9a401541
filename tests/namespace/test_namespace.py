"""What the namespace asks, believes and serves, with a clock of its own and a bucket in memory."""

import asyncio
import math

import pytest

from forebay.cache.namespace import Entry, FolderState, Namespace, NamespaceOptions
from forebay.cache.namespace.namespace import FULL_LOAD_AFTER, STALE_GRACE_S
from forebay.errors import StoreDenied, StoreUnavailable
from forebay.tests.support.memory_bucket import MemoryBucket, etag_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Setup:
    """A bucket, a clock and a namespace over them."""

    def __init__(self, *keys: str, ttl_s: float = 10.0, page_keys: int = 1000, max_bytes: int = 1 << 30) -> None:
        self.bucket = MemoryBucket(page_keys=page_keys)
        for key in keys:
            self.bucket.objects[key] = key.encode()
        self.clock = Clock()
        options = NamespaceOptions(metadata_ttl_s=ttl_s, max_listing_bytes=max_bytes)
        self.names = Namespace(self.bucket, "", options, clock=self.clock)

    async def entry(self, state: FolderState, name: bytes) -> Entry | None:
        return (await self.names.lookup(state, name)).entry(name)

    def lists(self) -> int:
        return self.bucket.calls["list"]


def is_file(entry: Entry | None, key: str, content: bytes | None = None) -> bool:
    content = key.encode() if content is None else content
    return entry == Entry(key.rpartition("/")[2].encode(), False, len(content), etag_of(content), 1)


async def test_one_request_answers_all_names_of_a_small_folder() -> None:
    s = Setup("a", "b/c", "b/d")
    root = s.names.hold("")
    assert s.names.peek(root, b"a") is None
    assert is_file(await s.entry(root, b"a"), "a")
    assert await s.entry(root, b"b") == Entry(b"b", True)
    assert await s.entry(root, b"x") is None
    assert s.lists() == 1
    found = s.names.peek(root, b"x")
    assert found is not None
    assert found.entry(b"x") is None


async def test_many_lookups_at_once_share_one_request() -> None:
    s = Setup("a")
    root = s.names.hold("")
    entries = await asyncio.gather(*(s.entry(root, b"a") for _ in range(50)), *(s.entry(root, b"x") for _ in range(50)))
    assert s.lists() == 1
    assert all(is_file(entry, "a") for entry in entries[:50])
    assert entries[50:] == [None] * 50


async def test_changes_are_seen_after_the_ttl_and_not_before() -> None:
    s = Setup("a", ttl_s=10)
    root = s.names.hold("")
    await s.entry(root, b"a")
    s.bucket.objects |= {"a": b"changed", "new": b"new"}
    s.clock.now_s += 9.9
    assert is_file(await s.entry(root, b"a"), "a")
    assert await s.entry(root, b"new") is None
    found = s.names.peek(root, b"a")
    assert found is not None
    assert found.ttl_s == pytest.approx(0.1)
    s.clock.now_s += 0.2
    assert s.names.peek(root, b"a") is None
    assert is_file(await s.entry(root, b"a"), "a", b"changed")
    assert is_file(await s.entry(root, b"new"), "new")
    assert s.lists() == 2


async def test_a_ttl_without_end_asks_once() -> None:
    s = Setup("a", ttl_s=math.inf)
    root = s.names.hold("")
    await s.names.listing(root)
    s.clock.now_s += 1e9
    found = s.names.peek(root, b"a")
    assert found is not None
    assert found.ttl_s == math.inf
    s.names.expire("")
    assert s.names.peek(root, b"a") is None


async def test_a_listing_under_way_when_it_expires_is_not_believed() -> None:
    s = Setup("a")
    root = s.names.hold("")
    original = s.bucket.list_page
    gate = asyncio.Event()

    async def gated(*args: object, **kwargs: object) -> object:
        page = await original(*args, **kwargs)  # type: ignore[arg-type]
        await gate.wait()
        return page

    s.bucket.list_page = gated  # type: ignore[method-assign,assignment]
    first = asyncio.ensure_future(s.names.listing(root))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    s.clock.now_s += 1
    s.bucket.objects["b"] = b"written back"
    s.names.expire("")
    gate.set()
    assert len((await first).listing) == 2
    assert is_file(await s.entry(root, b"b"), "b", b"written back")


async def test_a_listing_that_says_the_same_keeps_its_object() -> None:
    s = Setup("a", "b")
    root = s.names.hold("")
    first = (await s.names.listing(root)).listing
    s.clock.now_s += 11
    second = (await s.names.listing(root)).listing
    assert second is first
    assert s.names.stats().listings_unchanged == 1
    s.bucket.objects["a"] = b"other"
    s.clock.now_s += 11
    assert (await s.names.listing(root)).listing is not first


async def test_a_name_in_a_large_folder_costs_a_small_request_until_it_pays_to_list_it() -> None:
    s = Setup(*(f"k{number:03d}" for number in range(300)), page_keys=20)
    root = s.names.hold("")
    assert is_file(await s.entry(root, b"k007"), "k007")
    assert s.lists() == 2  # the first page, which was not all, and the name
    assert await s.entry(root, b"k007x") is None
    assert s.lists() == 3
    assert s.names.stats().entries_known == 0
    for number in range(FULL_LOAD_AFTER):
        assert is_file(await s.entry(root, b"k%03d" % number), f"k{number:03d}")
    await s.names.listing(root)  # joins what was begun in the background
    assert s.names.stats().entries_known == 300
    before = s.lists()
    for number in range(300):
        assert is_file(await s.entry(root, b"k%03d" % number), f"k{number:03d}")
    assert s.lists() == before


async def test_without_a_ttl_large_folders_are_not_listed_for_single_names() -> None:
    s = Setup(*(f"k{number:04d}" for number in range(100)), page_keys=10, ttl_s=0)
    root = s.names.hold("")
    for _ in range(2 * FULL_LOAD_AFTER):
        assert is_file(await s.entry(root, b"k0007"), "k0007")
    assert s.names.stats().loads_in_flight == s.names.stats().listings_loaded == 0
    s.bucket.objects["k0007"] = b"changed"
    assert is_file(await s.entry(root, b"k0007"), "k0007", b"changed")


async def test_a_large_folder_in_use_is_listed_again_ahead_of_time() -> None:
    s = Setup(*(f"k{number:04d}" for number in range(1500)), page_keys=500, ttl_s=100)
    root = s.names.hold("")
    original = s.bucket.list_page

    async def slow(*args: object, **kwargs: object) -> object:
        s.clock.now_s += 1
        return await original(*args, **kwargs)  # type: ignore[arg-type]

    s.bucket.list_page = slow  # type: ignore[method-assign,assignment]
    await s.names.listing(root)
    s.bucket.objects["k0007"] = b"changed"
    s.clock.now_s += 80
    assert s.names.peek(root, b"k0007") is not None
    await asyncio.sleep(0)
    assert s.names.stats().loads_in_flight == 0
    s.clock.now_s += 12  # 3 s of loading, 92 s since: in the last 6 of 100
    assert s.names.peek(root, b"k0007") is not None
    assert s.names.peek(root, b"k0008") is not None
    await asyncio.sleep(0)
    assert s.names.stats().loads_in_flight == 1
    await s.names.listing(root)
    while s.names.stats().loads_in_flight:  # noqa: ASYNC110
        await asyncio.sleep(0)
    s.clock.now_s += 20
    found = s.names.peek(root, b"k0007")
    assert found is not None
    assert is_file(found.entry(b"k0007"), "k0007", b"changed")
    assert s.names.stats().listings_loaded == 2
    await s.names.close()


async def test_single_names_tell_folders_from_files_with_longer_names() -> None:
    many = [f"k/{number}" for number in range(30)]
    s = Setup("dir-1", "dir-2", "dir-3", "dir.x", "dir/file", "file", "file-2", *many, "zz", page_keys=3)
    root = s.names.hold("")
    assert await s.entry(root, b"dir") == Entry(b"dir", True)
    assert await s.entry(root, b"k") == Entry(b"k", True)
    assert is_file(await s.entry(root, b"file"), "file")
    assert await s.entry(root, b"fil") is None
    assert await s.entry(root, b"di") is None


async def test_an_outage_serves_what_is_known_and_fails_what_is_not() -> None:
    s = Setup("a", "b/c")
    root = s.names.hold("")
    await s.names.listing(root)
    below = s.names.hold("b/")
    s.bucket.failure = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await s.names.listing(below)
    with pytest.raises(StoreUnavailable):
        await s.entry(below, b"c")
    s.clock.now_s += 1000
    assert is_file(await s.entry(root, b"a"), "a")
    assert await s.entry(root, b"x") is None
    assert len((await s.names.listing(root)).listing) == 2
    stats = s.names.stats()
    assert stats.stale_answers >= 1
    assert stats.stale_reason == "down"
    # For a moment known names are not even asked for, then they are asked again.
    calls = s.lists()
    found = s.names.peek(root, b"a")
    assert found is not None
    assert found.ttl_s == 0
    assert s.lists() == calls
    s.clock.now_s += STALE_GRACE_S + 0.1
    assert s.names.peek(root, b"a") is None
    s.bucket.failure = None
    s.bucket.objects["a"] = b"back"
    assert is_file(await s.entry(root, b"a"), "a", b"back")
    assert s.names.stats().stale_since_s is None


async def test_denied_is_an_outage_too_for_what_is_known() -> None:
    s = Setup("a")
    root = s.names.hold("")
    await s.entry(root, b"a")
    s.bucket.failure = StoreDenied("no")
    s.clock.now_s += 11
    assert is_file(await s.entry(root, b"a"), "a")
    with pytest.raises(StoreDenied):
        await s.names.listing(s.names.hold("other/"))


async def test_a_listing_that_fails_half_way_changes_nothing() -> None:
    s = Setup(*(f"k{number:02d}" for number in range(30)), page_keys=10)
    root = s.names.hold("")
    before = (await s.names.listing(root)).listing
    for number in range(30):
        del s.bucket.objects[f"k{number:02d}"]
    for number in range(30):
        s.bucket.objects[f"new{number:02d}"] = b"x"
    s.clock.now_s += 11
    original = s.bucket.list_page
    pages = 0

    async def failing(*args: object, **kwargs: object) -> object:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise StoreUnavailable("in the middle")
        return await original(*args, **kwargs)  # type: ignore[arg-type]

    s.bucket.list_page = failing  # type: ignore[method-assign,assignment]
    assert (await s.names.listing(root)).listing is before
    assert s.names.stats().stale_reason == "in the middle"
    s.clock.now_s += STALE_GRACE_S + 0.1
    assert next(iter((await s.names.listing(root)).listing.files)) == b"new00"


async def test_a_cancelled_caller_leaves_the_listing_to_the_others() -> None:
    s = Setup("a")
    root = s.names.hold("")
    first = asyncio.ensure_future(s.names.listing(root))
    second = asyncio.ensure_future(s.names.listing(root))
    await asyncio.sleep(0)
    first.cancel()
    assert len((await second).listing) == 1
    assert s.lists() == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    await s.names.close()


async def test_listings_are_bounded_and_the_least_used_goes() -> None:
    s = Setup(*(f"f{folder}/k{number}" for folder in range(10) for number in range(100)), max_bytes=20_000, ttl_s=1e6)
    states = [s.names.hold(f"f{folder}/") for folder in range(10)]
    for state in states:
        await s.names.listing(state)
        s.clock.now_s += 1
        s.names.peek(states[0], b"k1")  # used all the time
        s.clock.now_s += 1
    stats = s.names.stats()
    assert stats.listing_bytes <= 20_000
    assert stats.evicted >= 4
    assert states[0].known is not None
    assert states[1].known is None
    assert is_file(await s.entry(states[1], b"k5"), "f1/k5")
    for state in states:
        s.names.release(state)


async def test_a_prefix_and_a_missing_folder() -> None:
    s = Setup("a")
    assert len((await s.names.listing(s.names.hold("no/such/"))).listing) == 0
    with pytest.raises(ValueError, match="slash"):
        Namespace(s.bucket, "x", NamespaceOptions())


async def test_keys_that_are_not_shown_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    s = Setup("a", "a/b", "/lead", "c")
    root = s.names.hold("")
    await s.names.listing(root)
    s.clock.now_s += 11
    await s.names.listing(root)
    stats = s.names.stats()
    assert stats.skipped == {"a folder of the same name": 1, "an empty name in the path": 1}
    assert len(stats.skipped_examples) == 2
    assert sum("not shown" in record.message for record in caplog.records) == 1
