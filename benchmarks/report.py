"""Rows of a comparison, with their medians and ratios, as Markdown, JSON and a plot."""

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One workload: samples per contender, all measured in turn in one run.

    `higher_is_better` says how `ratio` is formed: ours / theirs for rates, theirs / ours for times, CPU and memory,
    so that above 1 always means that Forebay is better. `target` is the least ratio to `against`, or for a row
    without a peer the limit that our own median must not pass.
    """

    name: str
    unit: str
    higher_is_better: bool = True
    against: str | None = None
    target: float | None = None
    limit: float | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, contender: str, value: float) -> None:
        self.samples.setdefault(contender, []).append(value)

    def median(self, contender: str) -> float:
        return statistics.median(self.samples[contender])

    def ratio(self, peer: str) -> float:
        ours, theirs = self.median("forebay"), self.median(peer)
        if not ours or not theirs:
            return float("nan")
        return ours / theirs if self.higher_is_better else theirs / ours

    @property
    def verdict(self) -> str:
        if self.limit is not None:
            return "met" if self.median("forebay") <= self.limit else "MISSED"
        if self.against is None or self.target is None:
            return ""
        return "met" if self.ratio(self.against) >= self.target else "MISSED"

    @property
    def wanted(self) -> str:
        if self.limit is not None:
            return f"<= {self.limit:g} {self.unit}"
        return f"{self.target:g} x {self.against}" if self.against and self.target else ""


def markdown(rows: list[Row], title: str) -> str:
    lines = [
        f"# {title}",
        "",
        f"{platform.machine()}, kernel {platform.release()}, Python {platform.python_version()}. Medians; all sides in one run.",
        "A ratio above 1 means that Forebay is better.",
        "",
        "| workload | forebay | peers (ratio) | wanted | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        peers = ", ".join(
            f"{peer} {row.median(peer):,.4g} ({row.ratio(peer):.2f})" for peer in row.samples if peer != "forebay"
        )
        lines.append(
            f"| {row.name} | {row.median('forebay'):,.4g} {row.unit} | {peers} | {row.wanted} | {row.verdict} |"
            + (f" {row.note}" if row.note else "")
        )
    return "\n".join(lines) + "\n"


def write(rows: list[Row], title: str, folder: Path) -> None:
    """`results.md`, `results.json` and `results.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(markdown(rows, title))
    (folder / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    plot(rows, folder / "results.png")


def plot(rows: list[Row], path: Path) -> None:
    """Ratios per workload, one bar per peer, with a line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(row.name, peer, row.ratio(peer)) for row in rows for peer in row.samples if peer != "forebay"]
    if not bars:
        return
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(bars) + 1.2))
    axes.barh([f"{name} / {peer}" for name, peer, _ in bars], [ratio for _, _, ratio in bars])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ratio to the peer (above 1: Forebay is better)")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
