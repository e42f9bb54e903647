"""The options of `onp.defend`: one line each, shared by the Python call, the command line's help and the report."""

from __future__ import annotations

from dataclasses import dataclass

from onp.defend.decision import FAIL_ON
from onp.options import option


@dataclass(frozen=True)
class DefendConfig:
    """What to repair and how."""

    model: str | None = option(
        None,
        "checkpoint: .safetensors, .pt or .pth with weights only, or .pt2; or a folder of timm or transformers, whose "
        "config.json also says --arch, --norm and --image-size; PATH::KEY picks one of several sets of weights in a file",
        metavar="PATH",
        group="the model",
    )
    arch: str | None = option(
        None,
        "network of the checkpoint: a built-in name such as preact_resnet18:width=32,classes=10, package.module:callable, "
        "timm:NAME, torchvision:NAME or config:PATH, a config.json of timm or transformers (a .pt2 needs none)",
        metavar="SPEC",
        group="the model",
    )
    norm: str | None = option(
        None,
        "normalisation the model was trained with: cifar10, cifar100, imagenet, gtsrb, mnist, fashion-mnist, half, none, "
        "or MEAN/STD such as 0.49,0.48,0.45/0.25,0.24,0.26",
        metavar="NAME",
        group="the model",
    )
    image_size: int | None = option(
        None, "resize the shorter side to this many pixels and crop the centre", metavar="PIXELS", type=int, group="the model"
    )
    data: str | None = option(
        None,
        "a few hundred clean images: a folder with one sub-folder per class or a metadata.csv, a tar of one, .npz, CIFAR-10 "
        "batches, IDX, parquet; PATH::test picks a sub-folder or split",
        metavar="PATH",
        group="the images",
    )
    class_order: str | None = option(
        None,
        "names of the classes in the order in which the network counts them: a file with one name a line, or NAME,NAME,...",
        metavar="FILE|NAMES",
        group="the images",
    )
    expect_acc: float | None = option(
        None,
        "accuracy that the network should reach on the clean images, as a share; the run stops below it",
        metavar="SHARE",
        type=float,
        group="the images",
    )
    trigger: str | None = option(
        None, "the trigger, where it is known: a trigger.safetensors of onp attack", metavar="FILE", group="the images"
    )
    triggered_data: str | None = option(
        None, "images that carry the trigger, labelled or not", metavar="DIR", group="the images"
    )
    eval_data: str | None = option(
        None, "other labelled images, for measuring only", metavar="PATH", group="for measuring only"
    )
    eval_trigger: str | None = option(None, "the true trigger, for measuring only", metavar="FILE", group="for measuring only")
    eval_triggered_data: str | None = option(
        None,
        "images that carry the trigger, labelled with their own classes, for measuring only",
        metavar="DIR",
        group="for measuring only",
    )
    preset: str = option(
        "default",
        "how much to try; agent: as default, but a graph network learns what to prune; paper: as close to the published method "
        "as is known",
        choices=("fast", "default", "thorough", "agent", "paper"),
        group="the repair",
    )
    max_acc_drop: float = option(
        0.01, "accuracy that the repair may cost, as a share of the images", metavar="SHARE", group="the repair"
    )
    heal: bool = option(
        True,
        "prune only; else the later half of the pruned network is then trained to ignore the inverted triggers, and the report "
        "shows the pruning alone too",
        group="the repair",
    )
    tune: str | None = option(
        None,
        "after the repair, train what is left on the clean images: ft, ft-sam, nad, i-bau or sau; the report shows the "
        "repair alone too, the checkpoint written is the tuned one",
        metavar="METHOD",
        group="the repair",
    )
    repair: bool = option(True, "the verdict alone, without a repair", group="the repair")
    verify: bool = option(
        False,
        "ask whether a repaired checkpoint still obeys triggers; its mask.json is read where it lies beside it",
        group="the repair",
    )
    force: bool = option(False, "repair even with fewer than 50 clean images", group="the repair")
    out: str | None = option(
        None,
        "new or empty folder for the report (.html, .json, .txt, .sarif, ML-BOM, in-toto statement), config.toml with the "
        "options, and after a repair the checkpoint, mask.json and model_card.md",
        metavar="DIR",
        group="output",
    )
    shrink: bool = option(
        False,
        "also write the network without the pruned channels: shrunk.pt2, and shrunk.onnx where onnx is installed",
        group="output",
    )
    fail_on: str = option(
        "evidence",
        "which decisions end with an exit code other than 0; inconclusive: also a probability between the thresholds",
        choices=FAIL_ON,
        group="output",
    )
    quiet: bool = option(False, "no progress", group="output")
    verbose: bool = option(False, "a line for every step of the search", group="output")
    json: bool = option(False, "for machines: report.json on stdout, progress as JSON lines on stderr", group="output")
    tensorboard: str | None = option(
        None,
        "write the course of the search and the triggers there for TensorBoard (pip install tensorboard)",
        metavar="DIR",
        group="output",
    )
    demo: str | None = option(None, "repair an embedded example instead; see --list-demos", metavar="NAME", group="the run")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"), group="the run")
    memory: float | None = option(
        None,
        "memory that the run may take on a CPU, that of Python and torch included; with less it takes longer, and little of it "
        "leaves fewer augmented images to heal with",
        metavar="GIB",
        type=float,
        group="the run",
    )
    seed: int = option(0, "same seed, same machine: same mask", metavar="N", group="the run")
    resume: bool = option(False, "continue the run that was begun in --out, or begin it", group="the run")
