"""Writes command-line.md from the parsers of the three commands: `python docs/command_line.py`; a test compares the two."""

import argparse
from pathlib import Path

from onp.attack.__main__ import COMMAND as ATTACK
from onp.compare.__main__ import COMMAND as COMPARE
from onp.defend.__main__ import COMMAND as DEFEND

PAGE = Path(__file__).parent / "command-line.md"
HEAD = """\
# Command line

Written by `python docs/command_line.py` from the commands' own `--help`.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_section(command.parser()) for command in (DEFEND, ATTACK, COMPARE))


def _section(parser: argparse.ArgumentParser) -> str:
    out = [f"\n## `{parser.prog}`\n\n{parser.description}\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.option_strings and action.dest != "help"]
        if not actions:
            continue
        if group.title != "options":
            out.append(f"\n### {str(group.title).capitalize()}\n")
        out.append("\n| option | meaning |\n|---|---|\n")
        out += [f"| {_flag(action)} | {_meaning(action)} |\n" for action in actions]
    return "".join(out)


def _flag(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    dots = " ..." if action.nargs == "+" else ""
    return f"`{', '.join(action.option_strings)}{f' {value}' if value else ''}{dots}`"


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("|", "\\|")
    return f"{text} (required)" if action.required else text


if __name__ == "__main__":
    PAGE.write_text(page())
