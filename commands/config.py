"""Show every setting, its value and where the value comes from.

A flag beats a FOREBAY_ variable, which beats the configuration file, which beats the default.
Credentials are never settings: they come the usual AWS ways (environment, profile, instance role).
"""

import argparse

from .. import config
from . import frame


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", metavar="SETTING", help="only these settings")
    parser.add_argument("--explain", action="store_true", help="say what each setting does")
    frame.add_json(parser)
    frame.add_settings(parser, *config.TABLE)


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    for name in args.name:
        if name not in config.TABLE:
            raise config.unknown_setting(name)
    rows = [config.TABLE[name] for name in args.name or config.TABLE]
    if args.json:
        frame.emit_json(
            {
                row.name: {
                    "value": row.show(getattr(settings, row.field)) or None,
                    "default": row.default_text,
                    "origin": settings.origin(row.name),
                    "variable": row.variable,
                    "help": row.help,
                }
                for row in rows
            }
        )
        return 0
    if args.explain:
        for row in rows:
            print(
                f"{row.name} ({row.kind.name})\n    {row.help}\n    default: {row.default_text}; variable: {row.variable}"
            )
        return 0
    frame.emit_table(
        (
            (row.name, row.show(getattr(settings, row.field)) or f"({row.default_text})", settings.origin(row.name))
            for row in rows
        ),
        header=("SETTING", "VALUE", "FROM"),
    )
    return 0
