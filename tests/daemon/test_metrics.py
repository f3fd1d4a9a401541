"""The table of metrics is the document, and what is scraped is the table."""

from forebay.daemon import metrics
from forebay.tests.project.test_structure import ROOT


def test_document_lists_every_metric() -> None:
    rows = [line for line in (ROOT / "docs/metrics.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.help} |" for row in metrics.TABLE]
