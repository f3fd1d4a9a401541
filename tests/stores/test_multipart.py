"""Objects in parts, and versions of a bucket that keeps them, on a real S3 server."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from forebay.errors import ObjectChanged, ObjectNotFound
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.stores.s3 import S3Store
from forebay.tiers.understore import MultipartStore

PART_BYTES = 5 * 1024 * 1024


@pytest.fixture
async def store(s3: S3Server, aws_environment: None) -> AsyncIterator[S3Store]:
    opened, _ = open_store(f"s3://{s3.new_bucket('parts')}", StoreOptions(timeout_s=60))
    assert isinstance(opened, S3Store)
    yield opened
    await opened.close()


async def read_all(store: MultipartStore, key: str) -> bytes:
    info = await store.head(key)
    assert info is not None
    return bytes(await store.get_range(store.version(info), 0, info.size))


async def test_parts_in_any_order_and_ranges_of_what_is_there(store: S3Store) -> None:
    content = random.Random(1).randbytes(2 * PART_BYTES + 1000)
    source = store.version(await store.put("source", content))
    upload = await store.create_upload("target", metadata={"mtime": "1.5"})
    last, copied, first = await asyncio.gather(
        store.upload_part("target", upload, 3, b"the end"),
        store.copy_part("target", upload, 2, source, 1000, PART_BYTES),
        store.upload_part("target", upload, 1, content[:PART_BYTES]),
    )
    again = await store.upload_part("target", upload, 3, b"another end")
    assert again.etag != last.etag
    assert await store.head("target") is None
    info = await store.complete_upload("target", upload, [first, copied, again])
    assert await read_all(store, "target") == content[:PART_BYTES] + content[1000 : 1000 + PART_BYTES] + b"another end"
    found = await store.head("target")
    assert found is not None
    assert (found.etag, found.size, dict(found.metadata)) == (info.etag, info.size, {"mtime": "1.5"})
    assert found.etag.endswith("-3")


async def test_unfinished_uploads_are_found_and_aborted(store: S3Store) -> None:
    first = await store.create_upload("a/1")
    second = await store.create_upload("a/2")
    other = await store.create_upload("b/3")
    found = {pending.key: pending for pending in await store.list_uploads("a/")}
    assert {key: pending.upload_id for key, pending in found.items()} == {"a/1": first, "a/2": second}
    assert found["a/1"].initiated_ns > 0
    for key, upload in (("a/1", first), ("a/2", second), ("b/3", other), ("b/3", other), ("no", "no-such-upload")):
        await store.abort_upload(key, upload)
    assert await store.list_uploads("") == []
    with pytest.raises(ObjectNotFound):
        await store.upload_part("a/1", first, 1, b"x")


async def test_a_part_is_only_copied_from_the_version_asked_for(store: S3Store) -> None:
    source = store.version(await store.put("source", b"old" * 1000))
    await store.put("source", b"new" * 1000)
    upload = await store.create_upload("target")
    with pytest.raises(ObjectChanged):
        await store.copy_part("target", upload, 1, source, 0, 100)
    await store.delete("source")
    with pytest.raises(ObjectNotFound):
        await store.copy_part("target", upload, 1, source, 0, 100)


async def test_completion_on_a_condition(store: S3Store) -> None:
    present = await store.put("key", b"present")
    upload = await store.create_upload("key")
    part = await store.upload_part("key", upload, 1, b"parts")
    with pytest.raises(ObjectChanged):
        await store.complete_upload("key", upload, [part], if_absent=True)
    with pytest.raises(ObjectChanged):
        await store.complete_upload("key", upload, [part], if_match="0" * 32)
    assert await read_all(store, "key") == b"present"
    await store.complete_upload("key", upload, [part], if_match=present.etag)
    assert await read_all(store, "key") == b"parts"


async def test_an_older_version_is_read_by_its_id(store: S3Store, s3: S3Server) -> None:
    client: Any = s3.client()
    bucket = store.id.removeprefix("s3://").partition("@")[0]
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = await store.put("key", b"first")
    second = await store.put("key", b"second!")
    if first.version_id is None or second.version_id is None:
        pytest.skip("this server tells no version ids")
    assert bytes(await store.get_range(store.version(first), 0, 5)) == b"first"
    assert bytes(await store.get_range(store.version(second), 0, 7)) == b"second!"
    await store.delete("key")
    assert await store.head("key") is None
    assert bytes(await store.get_range(store.version(first), 1, 3)) == b"irs"
    old = await store.head("key", version_id=first.version_id)
    assert old is not None
    assert (old.etag, old.size, old.version_id) == (first.etag, 5, first.version_id)
    client.delete_object(Bucket=bucket, Key="key", VersionId=first.version_id)
    with pytest.raises(ObjectNotFound):
        await store.get_range(store.version(first), 0, 5)
