"""Writes command-line.md from the parsers of the commands: `python docs/command_line.py`; a test compares the two."""

import argparse
from pathlib import Path

from onp.__main__ import COMMANDS
from onp.attack.__main__ import COMMAND as ATTACK
from onp.compare.__main__ import COMMAND as COMPARE
from onp.defend.__main__ import COMMAND as DEFEND
from onp.scan.__main__ import COMMAND as SCAN
from onp.zoo.__main__ import COMMANDS as ZOO

PAGE = Path(__file__).parent / "command-line.md"
HEAD = """\
# Command line

`onp COMMAND --help` prints what this page says; `python docs/command_line.py` writes it from there.
"""
FILE_OF_OPTIONS = """
## Options from a file

`--config FILE` reads options from a TOML file. Its keys are the long options without the leading dashes; dashes and
underscores are the same, flags are `true` or `false`, and options with several values are lists. Options on the command line
come first, also `--no-quiet` and the like, which every flag has. A name that is no option, or a value of another type, is
refused.

```toml
model = "model.safetensors"
arch = "resnet18"
norm = "cifar10"
data = "clean"
max-acc-drop = 0.02
```

A run with `--out` writes its options to `config.toml` there, all but `--out` and `--resume`; this repeats it:

```bash
onp defend --config repaired/config.toml --out again
```

Paths in it are those that were given: give absolute ones, or repeat the run from the same folder.

## Exit codes

| code | of `scan`, `defend`, `verify` | of `attack` | of `compare`, `zoo` |
|---|---|---|---|
| 0 | nothing found, or `inconclusive` | done | done |
| 1 | evidence of a backdoor, repaired or not | | some cells or networks failed; table or log say why |
| 2 | something given cannot be used; one line on stderr says what | the same | the same |
| 3 | evidence of a backdoor, and no repair within the accuracy budget | | |
| 70 | an error in onp itself: please report it with the lines on stderr | the same | the same |
| 130 | interrupted | the same | the same |

With `--fail-on inconclusive`, an inconclusive run ends with 1 as well; with `--fail-on never`, every
decision ends with 0. `compare` has no verdict, so its 1 has a meaning of its own.

## Output for programs

`--json` prints the result on stdout as JSON and progress as JSON lines on stderr. That holds for errors, too: stdout is then
`{"error": {"message": ..., "exit_code": 2}}`. Where the reader of a pipe goes away, as with `| head`, the run goes on, and
its exit code is that of its decision.
"""


def page() -> str:
    """The whole page."""
    return (
        HEAD
        + _commands()
        + FILE_OF_OPTIONS
        + "".join(_section(command.parser()) for command in (SCAN, DEFEND, ATTACK, COMPARE, *ZOO.values()))
    )


def _commands() -> str:
    rows = "".join(f"| `onp {name}` | {text} |\n" for name, text in COMMANDS.items())
    return f"\n| command | what it does |\n|---|---|\n{rows}\n`python -m onp.defend` is `onp defend`, and so for the others.\n"


def _section(parser: argparse.ArgumentParser) -> str:
    out = [f"\n## `{parser.prog}`\n\n{parser.description}\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
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
    dots = "..." if action.nargs in ("+", "*") else ""
    words = " ".join(filter(None, (", ".join(action.option_strings), value, dots)))
    return f"`{words}`".replace("|", "\\|")


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("|", "\\|")
    return f"{text} (required)" if action.required else text


if __name__ == "__main__":
    PAGE.write_text(page())
