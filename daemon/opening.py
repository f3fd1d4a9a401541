"""Opening whatever is given as SOURCE."""

from .. import config
from ..errors import UsageError
from .live_source import LiveSource
from .sources import Source, is_dataset, name_of


async def open_source(text: str, settings: config.Settings, *, what: str) -> Source:
    """Open a source, and prove that it can be read: raises the StoreError (or SnapshotError) that says why not.

    `what` is what it is opened for ("the mount at /data"): people see it where a version is leased.
    """
    if is_dataset(text):
        from .snapshot_source import SnapshotSource  # Arrow takes a quarter of a second: only for those who need it

        return await SnapshotSource.open(name_of(text, settings), settings, what=what)
    if settings.by_label is not None:
        raise UsageError(
            f"{text} is no version of a dataset, and only those have labels", remedy="leave out --by-label"
        )
    return await LiveSource.open(text, settings)
