"""Versioned datasets: what exactly is in version v of dataset d?

`open_repository(url)` is the way in; `Repository` has every operation under the name of its command.
"""

from .commits import Commit
from .diff import DIFF_SCHEMA, DiffSummary
from .edits import EDIT_SCHEMA, EditCounts, puts, removals, sorted_edits
from .entries import ENTRY_SCHEMA, Entry, batch_of, entries_of
from .gc import Collector, GcReport
from .holds import Hold
from .importing import ImportProgress, ManifestOptions, ObjectName, Resolver
from .listing import FolderEntry, Statistics
from .locate import Location, Locator
from .merge import Conflict, Conflicts, MergeConflict
from .meta_url import open_meta
from .metastore import DatasetRecord, LeaseRecord, MetaStore
from .names import RefName, parse_ref
from .object_listing import blocking
from .relabel import LabelChange, label_place
from .repository import Edited, Imported, Repository, open_repository
from .selection import Selection
from .snapshot import Snapshot
from .split import Split
from .writing import Made, Note, command_line

__all__ = [
    "DIFF_SCHEMA",
    "EDIT_SCHEMA",
    "ENTRY_SCHEMA",
    "Collector",
    "Commit",
    "Conflict",
    "Conflicts",
    "DatasetRecord",
    "DiffSummary",
    "EditCounts",
    "Edited",
    "Entry",
    "FolderEntry",
    "GcReport",
    "Hold",
    "ImportProgress",
    "Imported",
    "LabelChange",
    "LeaseRecord",
    "Location",
    "Locator",
    "Made",
    "ManifestOptions",
    "MergeConflict",
    "MetaStore",
    "Note",
    "ObjectName",
    "RefName",
    "Repository",
    "Resolver",
    "Selection",
    "Snapshot",
    "Split",
    "Statistics",
    "batch_of",
    "blocking",
    "command_line",
    "entries_of",
    "label_place",
    "open_meta",
    "open_repository",
    "parse_ref",
    "puts",
    "removals",
    "sorted_edits",
]
