"""Listings of many servers are read the same, quickly or by a real parser, and broken ones are refused."""

import pytest

from forebay.errors import StoreCorrupt
from forebay.tiers.stores.s3.listing import parse_list_page, parse_time_ns, plain_etag

AMAZON = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p%2F</Prefix>\
<NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken><KeyCount>2</KeyCount>\
<MaxKeys>2</MaxKeys><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
<Contents><Key>p/a+b%2Bc%26%3C</Key><LastModified>2026-11-24T09:59:25.123Z</LastModified>\
<ETag>&quot;098aec9b05c0709bbab9d8dda68b3d62&quot;</ETag><Size>13</Size><StorageClass>STANDARD</StorageClass></Contents>\
<Contents><Key>p/%C3%A9</Key><LastModified>2026-11-24T09:59:25.000Z</LastModified>\
<ETag>&quot;0123-2&quot;</ETag><Size>5368709121</Size><StorageClass>STANDARD</StorageClass></Contents>\
<CommonPrefixes><Prefix>p/sub/</Prefix></CommonPrefixes></ListBucketResult>"""

INDENTED = """<?xml version="1.0"?>
<s3:ListBucketResult xmlns:s3="http://s3.amazonaws.com/doc/2006-03-01/">
  <s3:IsTruncated>false</s3:IsTruncated>
  <s3:Contents>
    <s3:Key>a &amp; b+c</s3:Key>
    <s3:LastModified>2026-11-24T09:59:25Z</s3:LastModified>
    <s3:ETag>"e"</s3:ETag>
    <s3:Size>1</s3:Size>
  </s3:Contents>
  <s3:CommonPrefixes><s3:Prefix>d &lt;/</s3:Prefix></s3:CommonPrefixes>
</s3:ListBucketResult>
"""


def test_a_page_as_amazon_writes_it() -> None:
    page = parse_list_page(AMAZON.encode())
    assert page.keys == ["p/a b+c&<", "p/é"]
    assert page.sizes == [13, 5368709121]
    assert page.etags == ["098aec9b05c0709bbab9d8dda68b3d62", "0123-2"]
    assert page.mtimes_ns == [1795514365_123_000_000, 1795514365_000_000_000]
    assert page.prefixes == ["p/sub/"]
    assert page.next_token == "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM="


def test_a_page_with_name_spaces_and_without_url_encoding() -> None:
    page = parse_list_page(INDENTED.encode())
    assert (page.keys, page.sizes, page.etags, page.prefixes) == (["a & b+c"], [1], ["e"], ["d </"])
    assert page.next_token is None


def test_an_empty_page() -> None:
    page = parse_list_page(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
    assert page.keys == page.prefixes == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<html><body>It works!</body></html>",
        AMAZON.encode()[:-30],
        AMAZON.encode()[:700],
        AMAZON.replace("<Size>13</Size>", "").encode(),
        AMAZON.replace("<Size>13</Size>", "<Size>thirteen</Size>").encode(),
        AMAZON.replace("09:59:25.123Z", "yesterday").encode(),
        AMAZON.replace("<ETag>&quot;0123-2&quot;</ETag>", "").encode(),
        AMAZON.replace("1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=", "").encode(),
    ],
    ids=["empty", "text", "page", "cut", "cut-early", "no-size", "bad-size", "bad-time", "no-etag", "no-token"],
)
def test_broken_pages_are_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        parse_list_page(body)


def test_both_parsers_agree() -> None:
    spaced = AMAZON.replace("<CommonPrefixes>", "<CommonPrefixes><!-- makes the quick one give up --><Owner/>")
    assert parse_list_page(spaced.encode()) == parse_list_page(AMAZON.encode())


def test_small_things() -> None:
    assert plain_etag('W/"abc"') == plain_etag('"abc"') == plain_etag("abc") == "abc"
    assert parse_time_ns("1970-01-01T00:00:01") == 1_000_000_000
