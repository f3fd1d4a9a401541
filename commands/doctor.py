"""Check this machine, and a source if one is given, and say what to do about what is not right.

Each line is ok, warn (it works, but slower or with less), or fail (a mount will not work). The exit status is 0 when
nothing failed. Credentials are looked for and never shown.
"""

import argparse

from .. import config
from ..daemon import checkup
from . import frame


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="s3://bucket[/prefix], file:///dir, ...")
    parser.add_argument("--no-speed", action="store_true", help="do not measure the cache disk (takes a few seconds)")
    frame.add_json(parser)
    frame.add_settings(
        parser, "cache-dir", "ram-dir", "endpoint-url", "profile", "anonymous", "io-timeout", "allow-other", "meta-url"
    )


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    findings = []
    for finding in checkup.examine(args.source, settings, measure_speed=not args.no_speed):
        findings.append(finding)
        if not args.json:
            print(f"{finding.grade:<4}  {finding.what:<14} {finding.found}", flush=True)
            if finding.remedy:
                print(f"{'':<21}-> {finding.remedy}", flush=True)
    failed = sum(finding.grade == "fail" for finding in findings)
    warned = sum(finding.grade == "warn" for finding in findings)
    if args.json:
        frame.emit_json(
            {
                "failed": failed,
                "warned": warned,
                "checks": [{"check": f.what, "grade": f.grade, "found": f.found, "remedy": f.remedy} for f in findings],
            }
        )
    else:
        print(f"\n{failed} failed, {warned} warnings" if failed or warned else "\neverything is in order")
    return 1 if failed else 0
