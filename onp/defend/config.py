"""The options of `onp.defend`: one line each, shared by the Python call, the command line's help and the report."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        self.exit(2, f"error: {message}; --help lists the options.\n")


def option(default: Any, text: str, **more: Any) -> Any:
    """A field that is also an option of the command line; `more` goes to argparse."""
    return dataclasses.field(default=default, metadata={"help": text, **more})


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """A command-line option for each field of `config` made by `option`: --max-acc-drop for `max_acc_drop`.

    A bool is a flag, a tuple takes several values; the type is that of the default, or what `option` was told as `type`.
    """
    for field in dataclasses.fields(config):
        default: Any = field.default
        more: dict[str, Any] = dict(field.metadata)
        text, flag = more.pop("help").replace("%", "%%"), "--" + field.name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=text)
            continue
        several = isinstance(default, tuple)
        shown = " ".join(map(str, default)) if several else default
        text += "" if shown in (None, "") else f" (default: {shown})"
        kind: dict[str, Any] = {"type": str if several or default is None else type(default)}
        parser.add_argument(flag, default=default, help=text, **kind | ({"nargs": "+"} if several else {}) | more)


@dataclass(frozen=True)
class DefendConfig:
    """What to repair and how."""

    model: str | None = option(
        None,
        "checkpoint: .safetensors, .pt or .pth with weights only, or .pt2; or a folder of timm or transformers, whose "
        "config.json also says --arch, --norm and --image-size; PATH::KEY picks one of several sets of weights in a file",
        metavar="PATH",
    )
    arch: str | None = option(
        None,
        "network of the checkpoint: a built-in name such as preact_resnet18:width=32,classes=10, package.module:callable, "
        "timm:NAME, torchvision:NAME or config:PATH, a config.json of timm or transformers (a .pt2 needs none)",
        metavar="SPEC",
    )
    data: str | None = option(
        None,
        "a few hundred clean images: a folder with one sub-folder per class or a metadata.csv, a tar of one, .npz, CIFAR-10 "
        "batches, IDX, parquet; PATH::test picks a sub-folder or split",
        metavar="PATH",
    )
    norm: str | None = option(
        None,
        "normalisation the model was trained with: cifar10, cifar100, imagenet, gtsrb, mnist, fashion-mnist, half, none, "
        "or MEAN/STD such as 0.49,0.48,0.45/0.25,0.24,0.26",
        metavar="NAME",
    )
    image_size: int | None = option(
        None, "resize the shorter side to this many pixels and crop the centre", metavar="PIXELS", type=int
    )
    out: str | None = option(
        None, "new or empty folder for the repaired checkpoint, mask.json and the report (.html, .json, .txt)", metavar="DIR"
    )
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    preset: str = option(
        "default",
        "how much to try; paper: as close to the published method as is known",
        choices=("fast", "default", "thorough", "paper"),
    )
    max_acc_drop: float = option(0.01, "accuracy that the repair may cost, as a share of the images", metavar="SHARE")
    tune: str | None = option(
        None,
        "after the pruning, train what is left on the clean images: ft, ft-sam, nad, i-bau or sau; the report shows the "
        "pruning alone too, the checkpoint written is the tuned one",
        metavar="METHOD",
    )
    shrink: bool = option(
        False, "also write the network without the pruned channels: shrunk.pt2, and shrunk.onnx where onnx is installed"
    )
    trigger: str | None = option(None, "the trigger, where it is known: a trigger.safetensors of onp.attack", metavar="FILE")
    triggered_data: str | None = option(None, "images that carry the trigger, labelled or not", metavar="DIR")
    eval_data: str | None = option(None, "other labelled images, for measuring only", metavar="PATH")
    eval_trigger: str | None = option(None, "the true trigger, for measuring only", metavar="FILE")
    eval_triggered_data: str | None = option(
        None, "images that carry the trigger, labelled with their own classes, for measuring only", metavar="DIR"
    )
    demo: str | None = option(None, "repair an embedded example instead; see --list-demos", metavar="NAME")
    seed: int = option(0, "same seed, same machine: same mask", metavar="N")
    resume: bool = option(False, "continue the run that was begun in --out, or begin it")
    quiet: bool = option(False, "no progress")
    verbose: bool = option(False, "a line for every step of the search")
    json: bool = option(False, "for machines: report.json on stdout, progress as JSON lines on stderr")
    tensorboard: str | None = option(
        None, "write the course of the search and the triggers there for TensorBoard (pip install tensorboard)", metavar="DIR"
    )
