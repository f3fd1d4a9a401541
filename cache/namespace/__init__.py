"""The names of a live bucket: folder listings, cached for as long as the user allows."""

from .folder_listing import IS_ABSENT, IS_FOLDER, Entry, FolderListing
from .namespace import Namespace, NamespaceOptions
from .states import FolderState, Found
from .stats import NamespaceStats

__all__ = [
    "IS_ABSENT",
    "IS_FOLDER",
    "Entry",
    "FolderListing",
    "FolderState",
    "Found",
    "Namespace",
    "NamespaceOptions",
    "NamespaceStats",
]
