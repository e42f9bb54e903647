"""Where the time of a whole run goes: `python bench/whole_run.py [--runs N] [--before CHECKOUT] [OPTIONS OF onp defend]`.

Each stage's seconds (medians of `--runs` runs of the command in processes of their own), what lies in memory at most, the
products that it computes (GFLOP; a multiplication and an addition are two), and their rate as a share of this machine's: the
rate of the product of two float32 matrices 1024 x 1024, timed here on as many threads. Products are counted in one more run on
one thread, through torch's operators and the functions of the compiled module. With `--before`, runs of another checkout of the
repository, with its compiled module beside it, alternate with those of this one, and the ratio of the medians is printed. Adds
a row to bench/results/whole_run.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, register_flop_formula

from onp.defend import defend
from onp.defend.__main__ import COMMAND
from onp.defend.monitor import Monitor
from onp.defend.report.environment import hardware, versions
from onp.engine.torch_backend import image_gradient, winograd
from onp.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "whole_run.json"
REST = "imports and the rest"


@dataclass(frozen=True)
class Timed:
    """One run of the command."""

    seconds: float
    processor: float  #: seconds of all threads
    memory: float  #: MiB that lay in memory at most
    stages: dict[str, float]  #: seconds


def timed(checkout: Path, options: list[str]) -> Timed:
    """Run `python -m onp.defend` of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        aliases = Path(folder) / "path"  # an installed package maps these names to another checkout
        aliases.mkdir()
        for name, source in (("onp", "onp"), ("onp_kernels", "kernels")):
            (aliases / name).symlink_to(checkout.resolve() / source)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(aliases), str(checkout.resolve())))}

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, *arguments]
            # Elsewhere than in a checkout, whose code Python would find first.
            return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

        found = run("-c", "import os, onp; print(os.path.realpath(onp.__file__))").stdout.strip()
        if not found.startswith(f"{checkout.resolve()}{os.sep}"):
            sys.exit(f"{checkout} was to run, and {found or 'nothing'} would.")
        with (Path(folder) / "stderr").open("w+") as messages:
            start = time.monotonic()
            command = [sys.executable, "-m", "onp.defend", "--json", *options, "--out", str(Path(folder) / "out")]
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=messages)
            _, status, used = os.wait4(process.pid, 0)  # what this one process used
            process.returncode, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - start
            messages.seek(0)
            written = messages.read()
    if process.returncode not in (0, 1):
        sys.exit(written)
    stages: dict[str, float] = defaultdict(float)
    for line in written.splitlines():
        if line.startswith('{"event": "stage end"'):
            event = json.loads(line)
            stages[event["name"]] += event["seconds"]
    memory = used.ru_maxrss / 1024
    return Timed(seconds, used.ru_utime + used.ru_stime, memory, {**stages, REST: seconds - sum(stages.values())})


def counted(options: list[str]) -> dict[str, float]:
    """Products of each stage of a run in this process, in GFLOP."""
    found: dict[str, float] = defaultdict(float)
    compiled = 0.0  # products of the compiled module, which torch does not see
    own, own_gradient, original = winograd.conv, image_gradient.image_gradient, Monitor.stage

    def conv(x: Tensor, filters: Tensor, *arguments: Any) -> Tensor:
        nonlocal compiled
        y = own(x, filters, *arguments)
        compiled += 2 * 9 * x.shape[1] * y.numel()
        return y

    def gradient(grad: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        nonlocal compiled
        compiled += 2 * weight[0].numel() * grad.numel()
        return own_gradient(grad, weight, *arguments)

    @contextmanager
    def stage(self: Monitor, name: str, total: int = 0) -> Iterator[Any]:
        before = compiled
        # Capturing a network runs it on tensors without values.
        with original(self, name, total) as shown, FlopCounterMode(display=False) if total else nullcontext() as counter:
            yield shown
        if counter is not None:
            found[name] += (counter.get_total_flops() + compiled - before) / 1e9

    torch.set_num_threads(1)
    with (
        mock.patch.object(winograd, "conv", conv),
        mock.patch.object(image_gradient, "image_gradient", gradient),
        mock.patch.object(Monitor, "stage", stage),
    ):
        defend(COMMAND.options([*options, "--quiet"]))
    return dict(found)


@register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
def _convolution(x: Any, weight: Any, bias: Any, *arguments: Any, out_shape: Any = None, **_: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def product_rate(threads: int) -> float:
    """GFLOP/s of a product of matrices."""
    torch.set_num_threads(threads)
    size, best = 1024, 0.0
    left, right = torch.randn(size, size), torch.randn(size, size)
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def table(row: dict[str, Any]) -> str:
    """Of the stages, as Markdown."""
    lines = ["| stage | seconds | GFLOP | share of the product rate, % |", "|---|---|---|---|"]
    for name, seconds in row["stages"].items():
        work = row["gflop"].get(name, 0.0)
        share = 100 * work / seconds / row["product_rate"] if seconds > 0.05 else 0.0
        lines.append(f"| {name} | {seconds:.1f} | {work:.0f} | {share:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--name", default="embedded default", help="of the row")
    options, given = parser.parse_known_args()
    here = Path(__file__).parents[1]
    checkouts = [here, *([options.before] if options.before else [])]
    runs: dict[Path, list[Timed]] = defaultdict(list)
    for _ in range(options.runs):
        for checkout in checkouts:
            runs[checkout].append(timed(checkout, given))
            print(checkout.name, runs[checkout][-1], flush=True)
    threads = torch.get_num_threads()
    row: dict[str, Any] = {"name": options.name, "options": given, "date": date.today().isoformat(), "runs": options.runs}
    row |= {"hardware": hardware(), "versions": versions(), "product_rate": round(product_rate(threads), 1)}
    for side, checkout in zip(("now", "before"), checkouts, strict=False):
        for part in ("seconds", "processor", "memory"):
            row[f"{part}_{side}"] = [round(getattr(each, part), 2) for each in runs[checkout]]
    if options.before:
        row["ratio"] = round(statistics.median(row["seconds_now"]) / statistics.median(row["seconds_before"]), 3)
    names = list(runs[here][0].stages)
    row["stages"] = {name: round(statistics.median(each.stages.get(name, 0.0) for each in runs[here]), 2) for name in names}
    row["gflop"] = {name: round(value, 1) for name, value in counted(given).items()}
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [each for each in rows if each["name"] != row["name"]] + [row]
    write_atomically(RESULTS, json.dumps(rows, indent=1) + "\n")
    print(table(row))
    print({name: value for name, value in row.items() if name.startswith(("seconds", "processor", "memory", "ratio"))})


if __name__ == "__main__":
    main()
