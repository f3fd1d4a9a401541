"""Versions of datasets: make them, look at them, compare, name, check and keep them.

A version is named dataset@ref: pets@v7, pets@latest, pets@main, a tag (pets@delivery-1) or an id (pets@3f2a9c). Versions
never change; what changes a dataset makes a new one.

examples:
  forebay snapshot create pets --from s3://bucket/pets -m "as it is today"
  forebay snapshot select pets@latest --where 'label.class == "cat" and size < 1e6' --branch cats
  forebay snapshot diff pets@v6 pets@v7
  forebay snapshot log pets
"""

import argparse

from .. import config
from .actions import add_actions, run_action
from .snapshot_keep import KEEP
from .snapshot_look import LOOK
from .snapshot_make import MAKE

ACTIONS = (*MAKE, *LOOK, *KEEP)


def configure(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    return run_action(ACTIONS, args, settings)
