"""Reading ListObjectVersions answers: what a bucket that keeps versions holds now, with the version ids.

The answer lists old versions and delete markers too; only the newest version of each key that is not deleted is kept, so a page may
have few keys, or none, and still go on. It is read by an XML parser: 5 ms for a thousand versions, of which a bucket of a million
objects needs a thousand times as many as it has versions per object; a look-up of each object would cost a thousand times that.
"""

import json
from xml.etree import ElementTree

from ....errors import StoreCorrupt
from ...understore import ListPage
from .listing import names_of_tree, plain_etag, times_of
from .replies import parse, text_of


def parse_version_page(body: bytes) -> ListPage:
    """The newest versions of `body`, with their ids. Raises StoreCorrupt when it is not a whole ListVersionsResult."""
    root = parse(body, "ListVersionsResult")
    url_encoded = (root.findtext("EncodingType") or "").strip() == "url"
    newest = [item for item in root.findall("Version") if (item.findtext("IsLatest") or "").strip() == "true"]
    try:
        sizes = [int(text_of(item, "Size")) for item in newest]
    except ValueError as error:
        raise StoreCorrupt("a listing with an object without a size") from error
    return ListPage(
        keys=names_of_tree([text_of(item, "Key") for item in newest], url_encoded),
        sizes=sizes,
        etags=[plain_etag(text_of(item, "ETag")) for item in newest],
        mtimes_ns=times_of([text_of(item, "LastModified") for item in newest]),
        prefixes=[],
        next_token=_next_token(root, url_encoded),
        version_ids=[text_of(item, "VersionId") for item in newest],
    )


def markers_of(token: str) -> tuple[tuple[str, str], ...]:
    """The query parameters that go on after the page which had this token."""
    key, version_id = json.loads(token)
    markers = (("key-marker", key),)
    return (*markers, ("version-id-marker", version_id)) if version_id else markers


def _next_token(root: ElementTree.Element, url_encoded: bool) -> str | None:
    if (root.findtext("IsTruncated") or "").strip() != "true":
        return None
    key = root.findtext("NextKeyMarker")
    if not key:
        raise StoreCorrupt("a listing that goes on, without the key to go on with")
    return json.dumps([names_of_tree([key], url_encoded)[0], root.findtext("NextVersionIdMarker") or ""])
