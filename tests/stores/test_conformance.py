"""The contract of UnderStore, on every kind of store."""

import asyncio

import pytest

from forebay.errors import BucketNotFound, ObjectChanged, ObjectNotFound, UsageError
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.understore import ListPage, UnderStore


async def listed(store: UnderStore, prefix: str = "", *, delimiter: str | None = None, limit: int = 1000) -> ListPage:
    """All pages as one."""
    keys: list[str] = []
    sizes: list[int] = []
    etags: list[str] = []
    mtimes_ns: list[int] = []
    prefixes: list[str] = []
    token: str | None = None
    while True:
        page = await store.list_page(prefix, delimiter=delimiter, token=token, limit=limit)
        assert len(page.keys) == len(page.sizes) == len(page.etags) == len(page.mtimes_ns)
        assert len(page.keys) + len(page.prefixes) <= limit
        keys += page.keys
        sizes += page.sizes
        etags += page.etags
        mtimes_ns += page.mtimes_ns
        prefixes += page.prefixes
        token = page.next_token
        if token is None:
            return ListPage(keys, sizes, etags, mtimes_ns, prefixes, None)


async def test_an_object_reads_back_by_ranges(store: UnderStore) -> None:
    content = bytes(range(256)) * 5000
    put = await store.put("folder/data.bin", content)
    info = await store.head("folder/data.bin")
    assert info is not None
    assert (info.key, info.size, info.etag) == ("folder/data.bin", len(content), put.etag)
    version = store.version(info)
    for offset, size in [(0, len(content)), (0, 1), (1000, 4096), (len(content) - 1, 1), (17, 0)]:
        assert bytes(await store.get_range(version, offset, size)) == content[offset : offset + size]


async def test_an_empty_object(store: UnderStore) -> None:
    await store.put("empty", b"")
    info = await store.head("empty")
    assert info is not None
    assert info.size == 0
    assert bytes(await store.get_range(store.version(info), 0, 0)) == b""


async def test_listing_agrees_with_head(store: UnderStore) -> None:
    await store.put("a/x", b"12345")
    page = await listed(store)
    info = await store.head("a/x")
    assert info is not None
    assert (page.keys, page.sizes, page.etags) == (["a/x"], [5], [info.etag])
    assert abs(page.mtimes_ns[0] - info.mtime_ns) < 2_000_000_000


async def test_listing_is_in_key_order_and_pages_join(store: UnderStore) -> None:
    names = ["a", "a-", "a.b", "ab/c", "ab/d/e", "ab0", "b/é", "b/日本", "b/z z", "b/+%&=#?", "c"]
    for name in reversed(names):
        await store.put(name, name.encode())
    ordered = sorted(names, key=lambda name: name.encode())
    for limit in (1, 2, 3, 1000):
        assert (await listed(store, limit=limit)).keys == ordered
    assert (await listed(store, "ab/")).keys == ["ab/c", "ab/d/e"]
    assert (await listed(store, "ab")).keys == ["ab/c", "ab/d/e", "ab0"]
    assert (await listed(store, "nothing")).keys == []


async def test_listing_with_delimiter_gives_one_folder(store: UnderStore) -> None:
    for name in ["x", "f/1", "f/2", "f/g/3", "h/4"]:
        await store.put(name, b"-")
    for limit in (1, 2, 1000):
        top = await listed(store, delimiter="/", limit=limit)
        assert (sorted(top.keys), sorted(top.prefixes)) == (["x"], ["f/", "h/"])
        inner = await listed(store, "f/", delimiter="/", limit=limit)
        assert (sorted(inner.keys), sorted(inner.prefixes)) == (["f/1", "f/2"], ["f/g/"])


async def test_what_is_not_there(store: UnderStore) -> None:
    await store.put("there", b"1")
    assert await store.head("not-there") is None
    assert await store.head("there/below") is None
    await store.delete("not-there")


async def test_an_overwritten_object_is_not_read(store: UnderStore) -> None:
    old = store.version(await store.put("key", b"old content"))
    await asyncio.sleep(0.01)  # a file system's clock may tick every 4 ms only
    new = store.version(await store.put("key", b"new content"))
    with pytest.raises(ObjectChanged, match="key"):
        await store.get_range(old, 0, 3)
    assert bytes(await store.get_range(new, 0, 3)) == b"new"


async def test_a_deleted_object_is_not_found(store: UnderStore) -> None:
    version = store.version(await store.put("key", b"content"))
    assert await store.delete("key")
    assert await store.head("key") is None
    with pytest.raises(ObjectNotFound, match="key"):
        await store.get_range(version, 0, 3)


async def test_conditional_put(store: UnderStore) -> None:
    first = await store.put("key", b"1", if_absent=True)
    with pytest.raises(ObjectChanged):
        await store.put("key", b"2", if_absent=True)
    second = await store.put("key", b"22", if_match=first.etag)
    with pytest.raises(ObjectChanged):
        await store.put("key", b"3", if_match=first.etag)
    assert bytes(await store.get_range(store.version(second), 0, 2)) == b"22"


async def test_copy(store: UnderStore) -> None:
    source = store.version(await store.put("source", b"content"))
    copied = await store.copy(source, "deep/er/target")
    assert bytes(await store.get_range(store.version(copied), 0, 7)) == b"content"
    await asyncio.sleep(0.01)
    await store.put("source", b"changed")
    with pytest.raises(ObjectChanged):
        await store.copy(source, "target2")
    await store.delete("source")
    with pytest.raises((ObjectNotFound, ObjectChanged)):
        await store.copy(source, "target3")
    assert await store.head("target2") is None


async def test_many_calls_at_once(store: UnderStore) -> None:
    await asyncio.gather(*(store.put(f"k{i}", b"x" * i) for i in range(50)))
    infos = await asyncio.gather(*(store.head(f"k{i}") for i in range(50)))
    assert [info.size for info in infos if info is not None] == list(range(50))


async def test_check_passes(store: UnderStore) -> None:
    await store.check()


@pytest.mark.usefixtures("aws_environment")
async def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    for url in ("s3://no-such-bucket-here", "file:///no/such/folder", "memory://no-such-root"):
        store, _ = open_store(url, StoreOptions(timeout_s=60))
        try:
            with pytest.raises(BucketNotFound):
                await store.check()
            with pytest.raises(BucketNotFound):
                await store.list_page("")
        finally:
            await store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a URL"),
        ("bucket", "not a URL"),
        ("/data/x", "write file:///data/x"),
        ("s3://", "no name of a bucket"),
        ("s3:///key", "no name of a bucket"),
        ("s3://key:secret@bucket/x", "no name of a bucket"),
        ("s3://a b/x", "no name of a bucket"),
        ("file://server/x", "three slashes"),
        ("nonsense://x", "no kind of store"),
        ("forebay://x", "no kind of store"),
    ],
)
def test_nonsense_urls_are_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "ftp://x", "http://", "http://host:port", "http://user:secret@host"]
)
def test_nonsense_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="endpoint") as caught:
        StoreOptions(endpoint_url=endpoint)
    assert "secret" not in str(caught.value)
