"""Print docs/commands.md, the reference of commands, from the help of each: scripts/commands.py >docs/commands.md"""

import argparse
from collections.abc import Iterator
from typing import Any

import typer.main

from defectseg.cli.main import app

INTRODUCTION = """# All commands

What `defectseg COMMAND --help` prints. This page is made by `python scripts/commands.py >docs/commands.md`.
"""


def help_texts(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """The name and the help of a command, then those of the commands in it, as in a terminal of 100 columns."""
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=100)
    yield context.command_path, command.get_help(context)
    for inner_name, inner in getattr(command, "commands", {}).items():
        yield from help_texts(inner, inner_name, context)


def reference() -> str:
    """The text of the page."""
    sections = [
        f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in help_texts(typer.main.get_command(app), "defectseg")
    ]
    return INTRODUCTION + "".join(sections)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(reference(), end="")
