"""Prometheus metrics of a Forebay process, made from its status when somebody scrapes; nothing is counted twice.

One table says name, type, meaning and where in the status the number stands; docs/metrics.md is checked against it.
"""

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from .. import config
from ..errors import ConfigError

log = logging.getLogger(__name__)

Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True)
class Row:
    """One metric. `read` gives (label values, number) pairs out of a status."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Iterator[Sample]]


def _cache(*fields: tuple[str, tuple[str, ...]]) -> Callable[[Mapping[str, Any]], Iterator[Sample]]:
    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        for field, labels in fields:
            yield labels, status["cache"][field]

    return read


def _tiers(field: str) -> Callable[[Mapping[str, Any]], Iterator[Sample]]:
    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        for tier in status["cache"]["tiers"]:
            yield (tier["name"], tier["folder"]), float(tier[field])

    return read


def _store(field: str) -> Callable[[Mapping[str, Any]], Iterator[Sample]]:
    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        for store in status["stores"]:
            value = store[field]
            if isinstance(value, Mapping):
                for kind, number in value.items():
                    yield (store["id"], kind), number
            else:
                yield (store["id"],), float(value is not None if field == "down_since_s" else value)

    return read


def _by_kind(part: str, field: str) -> Callable[[Mapping[str, Any]], Iterator[Sample]]:
    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        if status[part] is not None:
            for kind, number in status[part][field].items():
                yield (kind,), number

    return read


def _write(*path: str) -> Callable[[Mapping[str, Any]], Iterator[Sample]]:
    """A number of the write side; nothing for a mount that only reads, or where it is not known."""

    def read(status: Mapping[str, Any]) -> Iterator[Sample]:
        found: Any = status["write"]
        for name in path:
            if found is not None:
                found = found[name]
        if found is not None:
            yield (), float(found)

    return read


def _write_paused(status: Mapping[str, Any]) -> Iterator[Sample]:
    if status["write"] is not None:
        yield (), float(bool(status["write"]["paused"]))


def _write_failing(status: Mapping[str, Any]) -> Iterator[Sample]:
    if status["write"] is not None:
        yield (), float(len(status["write"]["failures"]))


_TIER = ("tier", "folder")
TABLE = (
    Row("forebay_reads_total", "counter", "Reads, by where they were answered from", ("from",),
        _cache(("ram_hits", ("ram",)), ("ssd_hits", ("ssd",)), ("memory_hits", ("memory",)), ("tier_hits", ("tier",)), ("misses", ("store",)))),
    Row("forebay_read_bytes_total", "counter", "Bytes that readers asked for", (), _cache(("asked_bytes", ()))),
    Row("forebay_fetches_total", "counter", "Requests for data to the object store", (), _cache(("fetches", ()))),
    Row("forebay_fetched_bytes_total", "counter", "Bytes fetched from the object store", (), _cache(("fetched_bytes", ()))),
    Row("forebay_readahead_bytes_total", "counter", "Bytes fetched ahead of readers", (), _cache(("readahead_bytes", ()))),
    Row("forebay_readahead_wasted_bytes_total", "counter", "Bytes fetched ahead that nobody read", (),
        _cache(("readahead_wasted_bytes", ()))),
    Row("forebay_not_cached_bytes_total", "counter", "Bytes served that no tier took", (), _cache(("not_cached_bytes", ()))),
    Row("forebay_promoted_bytes_total", "counter", "Bytes moved from the SSD to the RAM tier", (), _cache(("promoted_bytes", ()))),
    Row("forebay_demoted_bytes_total", "counter", "Bytes moved from the RAM to the SSD tier", (), _cache(("demoted_bytes", ()))),
    Row("forebay_cache_errors_total", "counter", "Failed fills and tier writes, by kind of error", ("kind",), _by_kind("cache", "errors")),
    Row("forebay_fills_in_flight", "gauge", "Ranges on their way from the object store", (), _cache(("fills_in_flight", ()))),
    Row("forebay_inflight_bytes", "gauge", "Memory that fills hold now", (), _cache(("inflight_bytes", ()))),
    Row("forebay_pins", "gauge", "Leases on cached data", (), _cache(("pins", ()))),
    Row("forebay_pinned_bytes", "gauge", "Bytes that leases hold", (), _cache(("pinned_bytes", ()))),
    Row("forebay_tier_capacity_bytes", "gauge", "Size limit of a tier", _TIER, _tiers("capacity_bytes")),
    Row("forebay_tier_used_bytes", "gauge", "What the files of a tier take up", _TIER, _tiers("used_bytes")),
    Row("forebay_tier_entries", "gauge", "Blocks and small objects in a tier", _TIER, _tiers("entries")),
    Row("forebay_tier_in_service", "gauge", "1 while a tier can be read and written", _TIER, _tiers("writable")),
    Row("forebay_tier_evicted_bytes_total", "counter", "Bytes evicted from a tier", _TIER, _tiers("evicted_bytes")),
    Row("forebay_tier_corrupt_total", "counter", "Pieces found damaged and fetched again", _TIER, _tiers("corrupt")),
    Row("forebay_tier_failures_total", "counter", "I/O errors of a tier", _TIER, _tiers("failures")),
    Row("forebay_store_requests_total", "counter", "Requests to the object store, retries included", ("store", "request"), _store("requests")),
    Row("forebay_store_errors_total", "counter", "Calls to the object store that failed in the end, by kind of error", ("store", "kind"), _store("errors")),
    Row("forebay_store_retries_total", "counter", "Requests that were tried again", ("store",), _store("retries")),
    Row("forebay_store_read_bytes_total", "counter", "Bytes that the object store sent", ("store",), _store("bytes_read")),
    Row("forebay_store_corrupt_answers_total", "counter", "Answers of the object store that could not be right", ("store",), _store("corrupt_answers")),
    Row("forebay_store_down", "gauge", "1 while the object store is known to be unreachable", ("store",), _store("down_since_s")),
    Row("forebay_write_dirty_bytes", "gauge", "Bytes in the write tier that are not in the bucket yet", (), _write("dirty_bytes")),
    Row("forebay_write_dirty_files", "gauge", "Files, folders and links that wait for the bucket", (), _write("dirty_files")),
    Row("forebay_write_dirty_limit_bytes", "gauge", "Dirty bytes at which writers wait (max-dirty-size)", (), _write("dirty_limit_bytes")),
    Row("forebay_write_oldest_dirty_seconds", "gauge", "How long the oldest of them has waited, 0 if there is none", (), _write("oldest_age_s")),
    Row("forebay_write_buffered_bytes", "gauge", "Bytes written since the last fsync or close of their files", (), _write("buffered_bytes")),
    Row("forebay_write_held_bytes", "gauge", "Bytes in the write tier that are in the bucket too, kept for reading", (), _write("held_bytes")),
    Row("forebay_write_open_files", "gauge", "Files that are open", (), _write("open_files")),
    Row("forebay_write_deletions_waiting", "gauge", "Objects that are still to be deleted", (), _write("doomed")),
    Row("forebay_write_uploads_in_flight", "gauge", "Uploads under way", (), _write("uploading")),
    Row("forebay_write_uploaded_files_total", "counter", "Objects uploaded and verified", (), _write("counts", "files")),
    Row("forebay_write_uploaded_bytes_total", "counter", "Bytes sent to the bucket", (), _write("counts", "sent_bytes")),
    Row("forebay_write_copied_bytes_total", "counter", "Bytes copied by the bucket itself", (), _write("counts", "copied_bytes")),
    Row("forebay_write_deleted_objects_total", "counter", "Objects deleted", (), _write("deleted")),
    Row("forebay_write_evicted_bytes_total", "counter", "Uploaded bytes given up in the write tier to make room", (), _write("evicted_bytes")),
    Row("forebay_write_failures_total", "counter", "Uploads and deletions that failed and are tried again, by kind of error", ("kind",), _by_kind("write", "failed")),
    Row("forebay_write_failing", "gauge", "Files and objects whose last try failed (100 at most)", (), _write_failing),
    Row("forebay_write_conflicts_total", "counter", "Objects that others had changed or made meanwhile", (), _write("counts", "conflicts")),
    Row("forebay_write_paused", "gauge", "1 while all writeback waits because the bucket does not answer", (), _write_paused),
    Row("forebay_write_waits_total", "counter", "Writes that had to wait for room", (), _write("waits", "count")),
    Row("forebay_write_wait_seconds_total", "counter", "How long they waited together", (), _write("waits", "seconds")),
    Row("forebay_write_refused_total", "counter", "Writes that got ENOSPC after waiting", (), _write("waits", "refused")),
    Row("forebay_write_tier_total_bytes", "gauge", "Size of the file system or pool of the write tier", (), _write("tier_total_bytes")),
    Row("forebay_write_tier_free_bytes", "gauge", "What is free of it", (), _write("tier_free_bytes")),
    Row("forebay_write_tier_trouble_seconds", "gauge", "Since when writers get errors of the write tier, 0 when they do not", (), _write("tier_trouble_s")),
    Row("forebay_mount_errors_total", "counter", "Requests of the kernel that failed, by errno", ("errno",), _by_kind("mount", "errors")),
    Row("forebay_jobs_running", "gauge", "Prefetches under way", (), lambda status: iter([((), sum(j["state"] == "running" for j in status["jobs"]))])),
    Row("forebay_up_seconds", "gauge", "How long the process has served", (), lambda status: iter([((), status["up_s"])])),
)  # fmt: skip


class StatusCollector(Collector):
    """Turns a status into metric families."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for row in TABLE:
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(row.name, row.help, labels=row.labels)
            for labels, number in row.read(status):
                metric.add_metric([label.encode("utf-8", "backslashreplace").decode() for label in labels], number)
            yield metric


@contextlib.asynccontextmanager
async def serve(status: Callable[[], Mapping[str, Any]], settings: config.Settings) -> AsyncIterator[int]:
    """Serve /metrics for the time of a `with`; gives the port. Raises ConfigError if it cannot be listened on."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    assert settings.metrics_port is not None
    try:
        listener = socket.create_server((settings.metrics_address, settings.metrics_port))
    except OSError as error:
        raise ConfigError(
            f"{settings.origin('metrics-port')}: metrics cannot be served on "
            f"{settings.metrics_address}:{settings.metrics_port}: {error.strerror}",
            remedy="choose another port, or 0 for any",
        ) from error
    app = web.Application()
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        port: int = listener.getsockname()[1]
        log.info("metrics at http://%s:%d/metrics", settings.metrics_address, port)
        yield port
    finally:
        await runner.cleanup()
