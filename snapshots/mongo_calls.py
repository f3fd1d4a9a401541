"""Calls to MongoDB that ride out elections and restarts, and its errors in words for people.

The driver repeats an operation once; `Retrying` goes on until a deadline. It may only be given operations that may be applied
twice, since an answer can be lost after the server has done its work.
"""

import random
import re
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import pymongo
import pymongo.errors

from ..errors import MetadataUnavailable

T = TypeVar("T")
P = ParamSpec("P")

_RETRY_BASE_S, _RETRY_CAP_S = 0.05, 2.0
# What servers say during shutdown, election and network trouble (the driver's list of retryable errors, and a few more).
_PASSING_CODES = {6, 7, 64, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}


class Retrying:
    """Calls with a deadline. `name` is the server's for messages, without credentials."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s

    def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of the call, tried until the deadline. Raises MetadataUnavailable."""
        deadline = time.monotonic() + self._timeout_s
        pause_s = _RETRY_BASE_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                with pymongo.timeout(max(left_s, 0.1)):
                    return call(*args, **kwargs)
            except pymongo.errors.PyMongoError as error:
                if not _passes(error):
                    raise MetadataUnavailable(f"{self._name}: {shortened(error)}", remedy=_remedy(error)) from None
                if time.monotonic() + pause_s >= deadline:
                    raise MetadataUnavailable(
                        f"{self._name} did not answer within {self._timeout_s:g} s: {shortened(error)}",
                        remedy="check that MongoDB runs and can be reached from here",
                    ) from None
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _RETRY_CAP_S)


def _passes(error: pymongo.errors.PyMongoError) -> bool:
    """Whether another try may help: the network, an election, a time-out; not a refused login or a bad request."""
    if isinstance(error, pymongo.errors.BulkWriteError):
        details = error.details or {}
        write_errors = details.get("writeErrors", [])
        # Two writers that insert the same page at once: the loser's upsert reports a duplicate, and passes when repeated.
        return all(e.get("code") == 11000 or e.get("code") in _PASSING_CODES for e in write_errors)
    if isinstance(error, pymongo.errors.DuplicateKeyError):
        return True
    if isinstance(error, pymongo.errors.OperationFailure):
        return error.code in _PASSING_CODES or error.has_error_label("RetryableWriteError") or error.timeout
    return isinstance(error, pymongo.errors.ConnectionFailure) or error.timeout


def _remedy(error: pymongo.errors.PyMongoError) -> str:
    if isinstance(error, pymongo.errors.OperationFailure) and error.code in (13, 18):
        return "check the user and password of the metadata URL and the user's roles"
    return "see the log of the MongoDB server"


def shortened(error: Exception) -> str:
    """The driver's words in one short line: its topology dump is noise, and URLs may hold a password."""
    text = re.sub(r",?\s*(Timeout: [\d.]+s|Topology Description:|full error:).*", "", str(error), flags=re.DOTALL)
    text = re.sub(r"(mongodb(?:\+srv)?://)[^@/\s]*@", r"\1", text)
    text = re.sub(r"\s*\(configured timeouts:.*?\)", "", text)
    return text.splitlines()[0][:300] if text else type(error).__name__


def redacted(url: str) -> str:
    """The URL without user, password and options, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
