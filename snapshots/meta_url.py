"""The URL of a metadata store, turned into the store: `mongodb://…` or `sqlite:///path`."""

import os
from pathlib import Path

from ..errors import ConfigError
from .metastore import MetaStore


def default_meta_url() -> str:
    """The embedded store of this user: `$XDG_DATA_HOME/forebay/meta.db`."""
    folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return f"sqlite:///{folder / 'forebay' / 'meta.db'}"


def open_meta(url: str | None = None, *, timeout_s: float = 30.0) -> MetaStore:
    """The store that a URL names: `mongodb://…` (or `mongodb+srv://`), `sqlite:///path`; None: `default_meta_url()`.

    Raises ConfigError for other URLs, MetadataUnavailable when the store cannot be reached.
    """
    # Imported here, so that neither backend costs the start-up time of commands that use the other.
    url = url or default_meta_url()
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from .mongo import MongoMetaStore

        return MongoMetaStore(url, timeout_s=timeout_s)
    if url.startswith("sqlite:///"):
        from .sqlite import SqliteMetaStore

        path = url.removeprefix("sqlite:///")
        if path:
            return SqliteMetaStore(Path(path).expanduser(), timeout_s=timeout_s)
    scheme = url.partition("://")[0] if "://" in url else url[:20]
    raise ConfigError(
        f"no metadata store is called {scheme!r}", remedy="use mongodb://host/database or sqlite:///path/to/file"
    )
