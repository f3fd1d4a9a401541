"""S3 copies between buckets of one service by itself, and refuses to pretend between services."""

from dataclasses import replace

import pytest

from forebay.errors import ObjectChanged, ObjectNotFound, UsageError
from forebay.tests.support.servers import S3Server
from forebay.tiers.stores import StoreOptions, open_store


async def test_copy_from_another_bucket(s3: S3Server, aws_environment: None) -> None:
    source, _ = open_store(f"s3://{s3.new_bucket('from')}", StoreOptions(timeout_s=60))
    target, _ = open_store(f"s3://{s3.new_bucket('into')}", StoreOptions(timeout_s=60))
    try:
        version = source.version(await source.put("a folder/ä+b", b"content"))
        copied = await target.copy(version, "x/y")
        assert bytes(await target.get_range(target.version(copied), 0, 7)) == b"content"
        await source.put("a folder/ä+b", b"other")
        with pytest.raises(ObjectChanged):
            await target.copy(version, "z")
        with pytest.raises(ObjectNotFound, match=f"{source.id}: no object 'gone'"):
            await target.copy(replace(version, key="gone"), "z")
        with pytest.raises(UsageError, match="another service"):
            await target.copy(replace(version, store="s3://from@elsewhere:1"), "z")
        assert await target.head("z") is None
    finally:
        await source.close()
        await target.close()
