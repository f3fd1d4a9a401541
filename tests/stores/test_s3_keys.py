"""Every key that S3 can hold can be listed, looked up, read, written and removed; and all requests are signed right."""

from collections.abc import AsyncIterator

import pytest

from forebay.errors import ObjectChanged, ObjectNotFound
from forebay.tests.support.plain_s3 import ACCESS_KEY, SECRET_KEY, PlainS3, plain_s3
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.s3 import S3Store

KEYS = [
    "plain", "a b", "a+b", "a%20b", "a%2Fb", "ü/ö", "日本/語", "😀", "a#b", "a?b=c&d", "a~b*c'd(e)!f$g", 'a"b', "a\\b",
    "{x}[y]^z`|<>", "a:b@c=d;e,f", ".hidden", "...", "a..b", "..a", "a/.../b", "-_.~",
    "a//b", "a///b", "//", "/", "/lead", "trail/", "x/../y", "../y", "x/..", "./z", "z/.", "..", ".",
    "a\tb", "a\nb", "a\x01b", "a\x7fb", "a\0b", "bad\udcff\udcfeutf8", "n" * 300,
]  # fmt: skip


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PlainS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    # What obstore reads by itself must not win over what we say.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    async with plain_s3({}) as running:
        yield running


@pytest.fixture
async def store(server: PlainS3) -> AsyncIterator[S3Store]:
    opened, _ = open_store("s3://bucket", StoreOptions(endpoint_url=server.url, timeout_s=30))
    assert isinstance(opened, S3Store)
    yield opened
    await opened.close()
    assert server.bad_signatures == []


@pytest.mark.parametrize("key", KEYS, ids=ascii)
async def test_any_key(server: PlainS3, store: S3Store, key: str) -> None:
    content = b"content of " + key.encode("utf-8", "surrogateescape")
    await store.put(key, content)
    assert list(server.objects) == [key]
    info = await store.head(key)
    assert info is not None
    version = store.version(info)
    assert bytes(await store.get_range(version, 0, len(content))) == content
    assert bytes(await store.get_range(version, 3, 5)) == content[3:8]
    assert (await store.list_page("")).keys == [key]
    assert (await store.list_page(key)).keys == [key]
    await store.put(key, b"other")
    with pytest.raises(ObjectChanged):
        await store.get_range(version, 0, 5)
    await store.delete(key)
    assert server.objects == {}
    with pytest.raises(ObjectNotFound):
        await store.get_range(version, 0, 5)


async def test_all_of_them_in_one_listing(server: PlainS3, store: S3Store) -> None:
    server.objects |= {key: key.encode("utf-8", "surrogateescape") for key in KEYS}
    server.page_entries = 7
    keys: list[str] = []
    token = None
    while True:
        page = await store.list_page("", token=token)
        keys += page.keys
        token = page.next_token
        if token is None:
            break
    assert keys == sorted(KEYS, key=lambda key: key.encode("utf-8", "surrogateescape"))
    # An empty name is a folder for S3, and a key that ends in a slash is in the folder that it names.
    server.page_entries = 1000
    inside = await store.list_page("a/", delimiter="/")
    assert (inside.keys, inside.prefixes) == ([], ["a/.../", "a//"])
    assert (await store.list_page("trail/", delimiter="/")).keys == ["trail/"]


async def test_temporary_credentials_are_sent_with_their_token(
    server: PlainS3, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the/token+of==today")
    server.token = "the/token+of==today"
    server.objects["k"] = b"content"
    other, _ = open_store("s3://bucket", StoreOptions(endpoint_url=server.url, timeout_s=30))
    try:
        info = await other.head("k")
        assert info is not None
        assert bytes(await other.get_range(other.version(info), 0, 7)) == b"content"
    finally:
        await other.close()


async def test_credentials_that_are_replaced_are_found_without_a_restart(
    server: PlainS3, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.objects |= {"k": b"content", "a//b": b"odd"}
    info = await store.head("k")
    assert info is not None
    version = store.version(info)
    assert bytes(await store.get_range(version, 0, 7)) == b"content"
    server.access_key, server.secret_key = "rotated", "rotated-secret"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "rotated")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated-secret")
    assert bytes(await store.get_range(version, 0, 7)) == b"content"
    assert await store.head("a//b") is not None
    assert (await store.list_page("")).keys == ["a//b", "k"]
    assert len(server.bad_signatures) >= 1
    server.bad_signatures.clear()


async def test_anonymous_requests_are_not_signed(server: PlainS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    server.access_key = "nobody"
    server.objects["k"] = b"content"
    store, _ = open_store("s3://bucket", StoreOptions(endpoint_url=server.url, anonymous=True, timeout_s=30))
    try:
        info = await store.head("k")
        assert info is not None
        assert bytes(await store.get_range(store.version(info), 0, 7)) == b"content"
    finally:
        await store.close()
    assert server.bad_signatures == []
