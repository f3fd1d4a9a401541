"""Reading S3's small XML answers: errors, and the results of copies and multipart uploads."""

import html
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ....errors import StoreCorrupt


def error_code(body: bytes, field: str = "Code") -> str | None:
    """A field of an `<Error>` answer; None where there is none."""
    if b"<Error" not in body[:300]:
        return None
    found = re.search(rb"<%b>([^<]*)</%b>" % (field.encode(), field.encode()), body)
    return html.unescape(found[1].decode("utf-8", "replace")) if found else None


def parse(body: bytes, expected: str) -> ElementTree.Element:
    """The root of an answer, name spaces taken away; raises StoreCorrupt when it is not an `expected` element."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise StoreCorrupt(f"an answer that is no XML: {error}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != expected:
        raise StoreCorrupt(f"an answer that is a {root.tag} and no {expected}")
    return root


def text_of(element: ElementTree.Element, field: str) -> str:
    """The text of a field that must be there."""
    found = element.findtext(field)
    if not found:
        raise StoreCorrupt(f"a {element.tag} without {field}")
    return found


def parts_request(parts: Sequence[tuple[int, str]]) -> bytes:
    """The body of CompleteMultipartUpload for (number, etag) pairs."""
    listed = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{html.escape(etag)}"</ETag></Part>' for number, etag in parts
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{namespace}">{listed}</CompleteMultipartUpload>'.encode()
