"""Under stores by URL: `open_store(url, options)` is the one way to get one.

s3://bucket[/prefix]   Amazon S3 and what speaks its protocol (also s3a://)
file:///dir            a folder
scheme://...           any file system that fsspec knows (memory, gs, abfs, hdfs, http, sftp...)
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from ...errors import UsageError
from ..understore import UnderStore
from .counters import StoreCounters
from .options import StoreOptions, without_secrets

__all__ = ["StoreCounters", "StoreOptions", "open_store"]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*)://(?P<rest>.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REMEDY = "write s3://bucket[/prefix], file:///dir or another URL that fsspec knows"


def open_store(url: str, options: StoreOptions | None = None) -> tuple[UnderStore, str]:
    """The store that `url` names and the prefix inside it: empty, or a folder ending in a slash.

    Nothing goes over the network: whether the store is there is asked by `check()`. Raises UsageError for a URL that
    can name no store, with the reason. Close the store when done; it belongs to the event loop that first uses it.
    S3 URLs are taken literally (no percent-decoding), as all S3 tools do; file URLs are percent-decoded.
    """
    options = options or StoreOptions()
    match = _URL.fullmatch(url)
    if match is None:
        if url.startswith(("/", "./", "../", "~")):
            raise UsageError(
                f"{url!r} is a path, not a URL", remedy=f"write {Path(url).expanduser().absolute().as_uri()}"
            )
        raise UsageError(f"{without_secrets(url)!r} is not a URL", remedy=_REMEDY)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme in ("s3", "s3a"):
        return _open_s3(rest, options)
    if scheme == "file":
        return _open_folder(url, rest, options), ""
    return _open_fsspec(scheme, url, options), ""


def _open_s3(rest: str, options: StoreOptions) -> tuple[UnderStore, str]:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        # The name is not repeated when it may hold credentials (s3://key:secret@bucket).
        shown = "a name with '@' in it" if "@" in bucket else repr(bucket)
        raise UsageError(f"{shown} is no name of a bucket", remedy="write s3://bucket[/prefix]")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    from .s3 import S3Store  # botocore and obstore take 0.3 s to import: only for those who need them

    return S3Store(bucket, options), prefix


def _open_folder(url: str, rest: str, options: StoreOptions) -> UnderStore:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(
            f"{url!r} names a host, not a folder of this machine", remedy="write file:///dir (three slashes)"
        )
    from .folder import FolderStore

    return FolderStore(Path(os.fsdecode(unquote_to_bytes("/" + path))), options)


def _open_fsspec(scheme: str, url: str, options: StoreOptions) -> UnderStore:
    import fsspec

    for part in scheme.split("::"):
        if part == "forebay" or part not in fsspec.available_protocols():
            raise UsageError(f"{without_secrets(url)!r}: no kind of store is called {part!r}", remedy=_REMEDY)
    from .fsspec_store import FsspecStore

    return FsspecStore(url, options)
