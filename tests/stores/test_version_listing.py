"""Listing a bucket that keeps versions: what is there now, with version ids, in few requests or by look-ups."""

from collections.abc import AsyncIterator

import pytest

from forebay.errors import StoreCorrupt, StoreDenied, StoreUnavailable
from forebay.snapshots.bucket_pages import bucket_pages
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.s3 import S3Store
from forebay.tiers.stores.s3.version_listing import markers_of, parse_version_page
from forebay.tiers.understore import ListPage, VersioningStore

AMAZON = """<?xml version="1.0" encoding="UTF-8"?>
<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p%2F</Prefix><KeyMarker/>\
<VersionIdMarker/><NextKeyMarker>p/%C3%A9+x</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker><MaxKeys>4</MaxKeys>\
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
<DeleteMarker><Key>p/gone</Key><VersionId>v9</VersionId><IsLatest>true</IsLatest>\
<LastModified>2026-11-24T09:59:25.000Z</LastModified></DeleteMarker>\
<Version><Key>p/gone</Key><VersionId>v8</VersionId><IsLatest>false</IsLatest>\
<LastModified>2026-11-24T09:59:24.000Z</LastModified><ETag>&quot;00&quot;</ETag><Size>7</Size></Version>\
<Version><Key>p/%C3%A9+x</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest>\
<LastModified>2026-11-24T09:59:25.123Z</LastModified><ETag>&quot;0123-2&quot;</ETag><Size>5368709121</Size></Version>\
<Version><Key>p/%C3%A9+x</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest>\
<LastModified>2026-11-24T09:59:20.000Z</LastModified><ETag>&quot;ff&quot;</ETag><Size>1</Size></Version></ListVersionsResult>"""


def test_old_versions_and_deleted_keys_are_left_out() -> None:
    page = parse_version_page(AMAZON.encode())
    assert (page.keys, page.version_ids) == (["p/é x"], ["v2"])
    assert (page.sizes, page.etags, page.mtimes_ns) == ([5368709121], ["0123-2"], [1795514365_123_000_000])
    assert page.next_token is not None
    assert markers_of(page.next_token) == (("key-marker", "p/é x"), ("version-id-marker", "v1"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>It works!</body></html>",
        AMAZON.encode()[:-30],
        AMAZON.replace("<Size>5368709121</Size>", "").encode(),
        AMAZON.replace("5368709121", "large").encode(),
        AMAZON.replace("<VersionId>v2</VersionId>", "").encode(),
        AMAZON.replace("<NextKeyMarker>p/%C3%A9+x</NextKeyMarker>", "").encode(),
    ],
    ids=["empty", "page", "cut", "no-size", "bad-size", "no-version", "no-marker"],
)
def test_broken_pages_are_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        parse_version_page(body)


@pytest.fixture
async def versioned(s3: S3Server, aws_environment: None) -> AsyncIterator[tuple[S3Store, dict[str, str]]]:
    """A bucket that keeps versions, and the newest version id of each key that is not deleted."""
    bucket = s3.new_bucket("versions")
    client = s3.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = {}
    for key in ("d/a b+é", "d/b", "d/c/x", "d/c/y", "d/gone", "d/z", "d0"):
        for times in range(3 if key == "d/b" else 1):
            ids[key] = client.put_object(Bucket=bucket, Key=key, Body=b"x" * times)["VersionId"]
    client.delete_object(Bucket=bucket, Key="d/gone")
    del ids["d/gone"]
    store, _ = open_store(f"s3://{bucket}", StoreOptions(timeout_s=60))
    assert isinstance(store, S3Store)
    yield store, ids
    await store.close()


async def test_a_real_bucket_page_by_page(versioned: tuple[S3Store, dict[str, str]]) -> None:
    store, ids = versioned
    assert isinstance(store, VersioningStore)
    found: dict[str, str | None] = {}
    token, pages = None, 0
    while pages == 0 or token is not None:
        page = await store.list_version_page("d/", token=token, limit=2)
        found.update(zip(page.keys, page.version_ids, strict=True))
        token, pages = page.next_token, pages + 1
    assert pages >= 4
    assert found == {key: version_id for key, version_id in ids.items() if key.startswith("d/")}
    for key, version_id in found.items():
        info = await store.head(key)
        assert info is not None
        assert info.version_id == version_id


async def collected(pages: AsyncIterator[ListPage]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    async for page in pages:
        ids = page.version_ids or [None] * len(page.keys)
        found.update(zip(page.keys, ids, strict=True))
    return found


async def test_a_version_of_such_a_bucket_costs_listings_and_no_look_ups(
    versioned: tuple[S3Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ids = versioned
    looked_up = []
    head = store.head

    async def counted(key: str, *, version_id: str | None = None) -> object:
        looked_up.append(key)
        return await head(key, version_id=version_id)

    monkeypatch.setattr(store, "head", counted)
    assert await collected(bucket_pages(store, "")) == ids
    assert len(looked_up) == 1


async def test_without_the_permission_each_object_is_looked_up(
    versioned: tuple[S3Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, ids = versioned

    async def denied(prefix: str, *, token: str | None = None, limit: int = 1000) -> ListPage:
        raise StoreDenied("denied (AccessDenied)")

    monkeypatch.setattr(store, "list_version_page", denied)
    assert await collected(bucket_pages(store, "")) == ids
    assert "s3:ListBucketVersions" in caplog.text


async def test_an_outage_is_no_reason_for_look_ups(
    versioned: tuple[S3Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = versioned

    async def away(prefix: str, *, token: str | None = None, limit: int = 1000) -> ListPage:
        raise StoreUnavailable("no answer in time")

    monkeypatch.setattr(store, "list_version_page", away)
    with pytest.raises(StoreUnavailable):
        await collected(bucket_pages(store, ""))


async def test_a_bucket_without_versions_has_no_ids(s3: S3Server, aws_environment: None) -> None:
    bucket = s3.new_bucket("plain")
    s3.client().put_object(Bucket=bucket, Key="k", Body=b"x")
    store, _ = open_store(f"s3://{bucket}", StoreOptions(timeout_s=60))
    try:
        assert await collected(bucket_pages(store, "")) == {"k": None}
        assert await collected(bucket_pages(store, "none/")) == {}
    finally:
        await store.close()
