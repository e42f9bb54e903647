"""What all commands do alike: options from the command line and a file, errors as one sentence or JSON, exit codes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from onp.config_file import read_config, write_config
from onp.errors import InputError, first_line, printable
from onp.files import write_atomically
from onp.options import Parser, add_options
from onp.progress import event, say

UNUSABLE, BUG, INTERRUPTED = 2, 70, 130
"""Exit codes of every command beside those of its result: unusable input, an error in onp itself, interrupted."""


@dataclass(frozen=True)
class Command:
    """A command with options.

    Example:
        >>> Command("defend", DefendConfig, work, description="Tell whether ...").run(["--seed", "1"])
    """

    name: str  #: after `onp`
    config: type  #: dataclass of its options, made by `onp.options.option`; those named out, json and quiet have a meaning here
    work: Callable[[Any], int]  #: takes such a dataclass and returns the exit code; may raise InputError
    description: str
    epilog: str = ""
    lists: tuple[tuple[str, str, str], ...] = ()  #: options that print a text and stop: name, line in --help, text
    interrupted: Callable[[Any], str] = lambda config: "run the same command again to continue."
    """Given the options, None where they were not read yet: the rest of the sentence that begins with "Interrupted"."""

    def parser(self) -> Parser:
        """The options of the command."""
        out = Parser(prog=f"onp {self.name}", description=self.description, epilog=self.epilog)
        out.add_argument("--config", metavar="FILE", help="read options from a TOML file; those given here come first")
        for name, text, shown in self.lists:
            out.add_argument(name, action="version", version=shown, help=text)
        add_options(out, self.config)
        places = [f" [{action.metavar} ...]" for action in out._actions if not action.option_strings]
        out.usage = f"onp {self.name} [options]{''.join(places)}"
        return out

    def options(self, arguments: Sequence[str]) -> Any:
        """The options that arguments give, together with those of the file that `--config` names.

        Raises:
            InputError: something that is no option, or no value of one.
        """
        parser = self.parser()
        for path in _config_files(arguments):
            values = read_config(path, self.config)
            parser.set_defaults(**values)
            for action in parser._actions:
                action.required = action.required and action.dest not in values
        values = vars(parser.parse_args(arguments))
        del values["config"]
        return self.config(**values)

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command line and return its exit code; writes the options to config.toml in the folder of --out.

        Args:
            arguments: those of the process where none are given.
        """
        given = sys.argv[1:] if arguments is None else list(arguments)
        config: Any = None

        def work() -> int:
            nonlocal config
            try:
                config = self.options(given)
            except SystemExit:  # --help and the like have printed what they print
                return 0
            code = self.work(config)
            self._keep(config)
            return code

        return guarded(work, lambda: getattr(config, "json", "--json" in given), lambda: self.interrupted(config))

    def _keep(self, config: Any) -> None:
        """Write the options to the folder of the results, where there is one."""
        folder = None if getattr(config, "out", None) is None else Path(config.out)
        if folder is not None and folder.is_dir():
            try:
                write_atomically(folder / "config.toml", write_config(config, self.name))
            except OSError as error:
                raise InputError(f"The options cannot be written to {folder} ({error.strerror}); make room there.") from error


def guarded(work: Callable[[], int], machine: Callable[[], bool], interrupted: Callable[[], str]) -> int:
    """The exit code that `work` returns, or that of what ended it; says so on stderr.

    Args:
        work: of a command.
        machine: whether errors are JSON, asked for when one occurs.
        interrupted: what to do after an interrupt, the rest of a sentence.
    """
    with _closed_pipes():
        try:
            return work()
        except InputError as error:
            return _failed(str(error), UNUSABLE, machine())
        except KeyboardInterrupt:
            return _failed(f"Interrupted; {interrupted()}", INTERRUPTED, machine())
        except (Exception, SystemExit) as error:
            # Not code 1, with which Python would end: that says that evidence of a backdoor was found.
            traceback.print_exc()
            return _failed(f"This is an error in onp; please report it ({printable(first_line(error))}).", BUG, machine())


def _failed(message: str, code: int, machine: bool) -> int:
    if machine:
        print(json.dumps({"error": {"message": message, "exit_code": code}}, indent=2))
        event("error", message=message, exit_code=code)
    else:
        say(message if code == INTERRUPTED else f"error: {message}")
    return code


def _config_files(arguments: Sequence[str]) -> list[Path]:
    """The files that --config names, the last of which comes first."""
    parser = Parser(add_help=False)
    parser.add_argument("--config", action="append", default=[])
    return [Path(name) for name in parser.parse_known_args(arguments)[0].config]


class _Output:
    """A stream whose reader may go away, as `| head` does: what is written after that is dropped.

    The command goes on, so that its exit code is that of its result.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        with self._forgiving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._forgiving():
            self._stream.flush()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # The interpreter writes the rest of its buffer when it ends: that, too, has to go somewhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def _closed_pipes() -> Iterator[None]:
    """Let stdout and stderr lose their readers until the block ends."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    try:
        yield
    finally:
        with suppress(ValueError):  # a closed stream
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = streams
