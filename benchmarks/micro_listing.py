"""What a listing costs us: one folder of many keys, from the S3 answers to the inodes of a mount, beside other clients.

The server is a process of its own that answers from memory, so what is measured is the client: rates are above what a
store gives, and the CPU is that of the client alone. Medians of `--rounds`.

    python benchmarks/micro_listing.py [--keys 200000] [--rounds 3]
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import boto3
import botocore.config
import obstore
from aiohttp import web
from obstore.store import S3Store as ObstoreS3

from forebay.cache.namespace import Namespace, NamespaceOptions
from forebay.fuse_mount.live_view import LiveView
from forebay.fuse_mount.view import ROOT_INO
from forebay.tiers.stores import StoreOptions, open_store

PAGE = 1000
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1"}


def serve(keys: int, ready: Connection) -> None:
    """Answer ListObjectsV2 for a bucket with one folder of `keys` objects, pages made beforehand."""
    pages = [page(first, min(first + PAGE, keys), keys) for first in range(0, keys, PAGE)]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        first = int(request.query.get("continuation-token", "0"))
        return web.Response(body=pages[first // PAGE], content_type="application/xml")

    async def run() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def page(first: int, last: int, keys: int) -> bytes:
    contents = "".join(
        f"<Contents><Key>train/image-{number:09d}.jpg</Key><LastModified>2026-11-24T09:{number % 60:02d}:25.000Z"
        f"</LastModified><ETag>&quot;{number:032x}&quot;</ETag><Size>{110_000 + number % 1000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(first, last)
    )
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < keys else ""
    head = f"<Name>bench</Name><Prefix>train/</Prefix><MaxKeys>{PAGE}</MaxKeys><EncodingType>url</EncodingType>"
    text = f"{head}<IsTruncated>{'true' if token else 'false'}</IsTruncated>{token}<KeyCount>{last - first}</KeyCount>"
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{text}{contents}</ListBucketResult>'.encode()


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def our_pages(url: str) -> int:
    store, _ = open_store("s3://bench", StoreOptions(endpoint_url=url))
    count, token = 0, None
    while True:
        found = await store.list_page("train/", delimiter="/", token=token)
        count += len(found.keys)
        token = found.next_token
        if token is None:
            await store.close()
            return count


async def boto3_pages(url: str) -> int:
    config = botocore.config.Config(s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=url, config=config)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix="train/", Delimiter="/")
    return await asyncio.to_thread(lambda: sum(len(found["Contents"]) for found in pages))


async def obstore_pages(url: str) -> int:
    store = ObstoreS3("bench", aws_endpoint_url_s3=url, client_options={"allow_http": True})
    count = 0
    async for found in obstore.list(store, "train", chunk_size=PAGE):
        count += len(found)
    return count


async def measured(name: str, work: Callable[[], Awaitable[int]], rounds: int, expected: int) -> None:
    wall_s, cpu_s = [], []
    for _ in range(rounds):
        started, started_cpu = time.perf_counter(), time.process_time()
        count = await work()
        wall_s.append(time.perf_counter() - started)
        cpu_s.append(time.process_time() - started_cpu)
        if count != expected:
            sys.exit(f"{name}: {count} keys instead of {expected}")
    wall, cpu = statistics.median(wall_s), statistics.median(cpu_s)
    print(f"{name:<34} {expected / wall:>10,.0f} keys/s {cpu / expected * 1e6:>8.2f} us of CPU per key")


async def mounted(url: str, keys: int, rounds: int) -> None:
    """The folder as a mount has it: listed, all names, all inodes, refreshed."""
    store, prefix = open_store("s3://bench/train", StoreOptions(endpoint_url=url))
    before_mb = resident_mb()
    namespace = Namespace(store, prefix, NamespaceOptions(metadata_ttl_s=3600))
    view = LiveView(namespace)

    async def load() -> int:
        namespace.expire(prefix)
        return len(list((await view.open_directory(ROOT_INO)).read(keys - 1, plus=False))) * keys

    async def names() -> int:
        return sum(1 for _ in (await view.open_directory(ROOT_INO)).read(0, plus=False))

    async def nodes() -> int:
        return sum(1 for _ in (await view.open_directory(ROOT_INO)).read(0, plus=True))

    async def peeks() -> int:
        return sum(1 for number in range(keys) if view.peek(ROOT_INO, b"image-%09d.jpg" % number))

    await measured("namespace: whole folder", load, rounds, keys)
    await measured("view: names of an open directory", names, rounds, keys)
    await measured("view: names with inodes", nodes, rounds, keys)
    await measured("view: peek", peeks, rounds, keys)
    print(f"memory of listing and inodes: {(resident_mb() - before_mb) / keys * 1e6:.0f} bytes per key")
    await namespace.close()
    await store.close()


async def run(keys: int, rounds: int) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(keys, theirs), daemon=True)
    server.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}"
        await mounted(url, keys, rounds)
        await measured("under store: pages", lambda: our_pages(url), rounds, keys)
        await measured("obstore: pages", lambda: obstore_pages(url), rounds, keys)
        await measured("boto3: pages", lambda: boto3_pages(url), rounds, keys)
    finally:
        server.kill()
        server.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(CREDENTIALS)
    asyncio.run(run(arguments.keys, arguments.rounds))


if __name__ == "__main__":
    main()
