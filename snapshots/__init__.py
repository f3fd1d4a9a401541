"""Versioned datasets: what exactly is in version v of dataset d?"""

from .entries import ENTRY_SCHEMA, Entry
from .metastore import MetaStore, open_meta

__all__ = ["ENTRY_SCHEMA", "Entry", "MetaStore", "open_meta"]
