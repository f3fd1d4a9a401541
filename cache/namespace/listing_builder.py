"""Makes a `FolderListing` out of the pages of a store's listing with delimiter `/`, as they come.

A key that no path can name is left out, counted with its reason and shown by example; nothing else is lost:

    key below the folder                     what becomes of it
    ""  (the key ends in `/`)                a folder marker: the folder exists; not shown as a file
    "" but with bytes in it                  reported
    "/b" (`a//b`), as the empty folder name  reported
    "." or ".."                              reported
    NUL in the name, or above 255 bytes      reported
    "a" beside "a/..."                       the folder is shown, the file is reported
"""

from array import array
from collections import Counter
from collections.abc import Sequence

from ...tiers.understore import ListPage
from .folder_listing import ETAG_BYTES, FolderListing, Skipped
from .names import NameColumn, NameColumnBuilder

MAX_NAME_BYTES = 255
MAX_EXAMPLES = 5
_NOWHERE = b"\0" * ETAG_BYTES
_UNPATHLIKE = (b"", b".", b"..")


class ListingBuilder:
    """One listing of the folder `prefix` (empty or ending in `/`). Add all pages, in order, then `finish`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode("utf-8", "surrogateescape")
        self._files = NameColumnBuilder()
        self._sizes = array("q")
        self._mtimes_ns = array("q")
        self._etags: list[bytes] = []
        self._odd_etags: dict[int, str] = {}
        self._folders = NameColumnBuilder()
        self._skipped: Counter[str] = Counter()
        self._examples: list[str] = []
        self.has_marker = False

    def add(self, page: ListPage) -> None:
        names = self._names(page.keys)
        sizes, etags, mtimes_ns = page.sizes, page.etags, page.mtimes_ns
        reasons = self._reasons(names)
        if reasons:
            kept = [row for row in range(len(names)) if not self._is_refused(names[row], sizes[row], reasons.get(row))]
            names = [names[row] for row in kept]
            sizes = [sizes[row] for row in kept]
            etags = [etags[row] for row in kept]
            mtimes_ns = [mtimes_ns[row] for row in kept]
        first_row = len(self._sizes)
        try:
            packed = bytes.fromhex("".join(etags))
            is_plain = len(packed) == ETAG_BYTES * len(etags) and all(len(etag) == 2 * ETAG_BYTES for etag in etags)
            is_plain = is_plain and packed.hex() == "".join(etags)
        except ValueError:
            is_plain = False
        if not is_plain:
            packed = b"".join(self._pack(first_row + row, etag) for row, etag in enumerate(etags))
        self._files.add(names)
        self._sizes.extend(sizes)
        self._mtimes_ns.extend(mtimes_ns)
        self._etags.append(packed)
        folders = [name.removesuffix(b"/") for name in self._names(page.prefixes)]
        reasons = self._reasons(folders)
        if reasons:
            folders = [
                name for row, name in enumerate(folders) if not self._is_refused(name, 0, reasons.get(row), folder=True)
            ]
        self._folders.add(folders)

    def finish(self) -> FolderListing:
        """The listing. For large folders call it in a thread: it may sort."""
        files, folders, etags = self._files.column(), self._folders.column(), b"".join(self._etags)
        if not self._folders.is_ascending:
            folders = NameColumn.of(sorted(set(folders)))
        if not self._files.is_ascending:
            # Of a name that came twice the later one counts.
            latest = {name: row for row, name in enumerate(files)}
            files, etags = self._take([latest[name] for name in sorted(latest)], files, etags)
        hidden = self._hidden(files, folders)
        if hidden:
            files, etags = self._take([row for row in range(len(files)) if row not in hidden], files, etags)
        skipped = Skipped(dict(self._skipped), tuple(self._examples))
        return FolderListing(files, self._sizes, self._mtimes_ns, etags, self._odd_etags, folders, skipped)

    def _names(self, keys: Sequence[str]) -> list[bytes]:
        """The keys below the folder, as bytes; one encoding for the whole page."""
        if not keys:
            return []
        cut = len(self._prefix)
        joined = "\0".join(keys).encode("utf-8", "surrogateescape")
        if joined.count(b"\0") == len(keys) - 1:
            return [key[cut:] for key in joined.split(b"\0")]
        return [key.encode("utf-8", "surrogateescape")[cut:] for key in keys]

    def _reasons(self, names: Sequence[bytes]) -> dict[int, str]:
        """Rows that cannot be shown, with the reason; a page without any is recognised quickly."""
        joined = b"/".join(names)
        is_short = len(joined) <= MAX_NAME_BYTES or max(map(len, names), default=0) <= MAX_NAME_BYTES
        if is_short and b"\0" not in joined and not any(bad in names for bad in _UNPATHLIKE):
            return {}
        reasons: dict[int, str] = {}
        for row, name in enumerate(names):
            if name == b"":
                reasons[row] = "an empty name in the path"
            elif name in _UNPATHLIKE:
                reasons[row] = "a name that is . or .."
            elif b"\0" in name:
                reasons[row] = "a name with a NUL byte"
            elif len(name) > MAX_NAME_BYTES:
                reasons[row] = f"a name above {MAX_NAME_BYTES} bytes"
        return reasons

    def _is_refused(self, name: bytes, size: int, reason: str | None, *, folder: bool = False) -> bool:
        if reason is None:
            return False
        if name == b"" and not folder:
            self.has_marker = True
            if size == 0:
                return True
            reason = "bytes under a key that ends in a slash"
        self._report(name, reason)
        return True

    def _report(self, name: bytes, reason: str) -> None:
        self._skipped[reason] += 1
        if len(self._examples) < MAX_EXAMPLES:
            shown = (self._prefix + name).decode("utf-8", "backslashreplace")[:200]
            self._examples.append(f"{shown!r}: {reason}")

    def _pack(self, row: int, etag: str) -> bytes:
        if len(etag) == 2 * ETAG_BYTES:
            try:
                packed = bytes.fromhex(etag)
            except ValueError:
                packed = b""
            if len(packed) == ETAG_BYTES and packed.hex() == etag:
                return packed
        self._odd_etags[row] = etag
        return _NOWHERE

    def _hidden(self, files: NameColumn, folders: NameColumn) -> set[int]:
        """File rows whose name is also a folder's."""
        if len(folders) <= len(files):
            rows = {files.find(name) for name in folders}
        else:
            rows = {row for row, name in enumerate(files) if folders.find(name) >= 0}
        rows.discard(-1)
        for row in sorted(rows):
            self._report(files[row], "a folder of the same name")
        return rows

    def _take(self, rows: Sequence[int], files: NameColumn, etags: bytes) -> tuple[NameColumn, bytes]:
        """Keep these rows, in this order."""
        self._sizes = array("q", (self._sizes[row] for row in rows))
        self._mtimes_ns = array("q", (self._mtimes_ns[row] for row in rows))
        odd = self._odd_etags
        self._odd_etags = {new: odd[row] for new, row in enumerate(rows) if row in odd}
        kept = b"".join(etags[row * ETAG_BYTES : (row + 1) * ETAG_BYTES] for row in rows)
        return NameColumn.of([files[row] for row in rows]), kept
