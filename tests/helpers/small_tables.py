"""A small table of two victims and three defences, and others made of its parts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from onp.compare import CompareConfig
from onp.compare.victims import read_card

ARCH = "vgg11_bn:width=4"
FIGURES = {
    **{"acc_before": 0.9, "acc": 0.8, "asr_before": 1.0, "asr": 0.1, "ra_before": 0.0, "ra": 0.5},
    **{"asr_untriggered": 0.0, "der": 0.9, "decision": "tuned", "seconds": 1.0},
}


def write_images(path, count, seed, **more):
    """Three classes of 16x16 images that mirroring does not change: bright top, bright bottom, dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :8] += 120
    images[labels == 1, :, 8:] += 120
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images.numpy(), labels=labels.numpy(), **more)
    return str(path)


def table_config(folder):
    """Two victims and three defences."""
    return CompareConfig(
        out=str(folder / "table"),
        attacks=("blended", "none"),
        defences=("clp", "fp+ft", "ft"),
        archs=(ARCH,),
        data=(write_images(folder / "train.npz", 600, 0),),
        test_data=(write_images(folder / "test.npz", 300, 1),),
        norm=("half",),
        epochs=8,
        clean=120,
        evaluation=150,
        max_acc_drop=0.05,
        passes=1500,
        threads=1,
        quiet=True,
    )


def arguments(config):
    """The command-line options of a config."""
    options = []
    for name, value in vars(config).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            options += [flag, *map(str, value)] if value else []
        elif isinstance(value, bool):
            options += [flag] if value else []
        elif value is not None:
            options += [flag, str(value)]
    return options


def ready_victim(config, rows, folder, **card):
    """A copy of the attacked victim; what is given replaces what its card says."""
    shutil.copytree(Path(config.out) / "victims" / rows[0]["victim"], folder)
    (folder / "card.json").write_text(json.dumps(read_card(folder) | card))
    return str(folder)


def other_table(config, tmp_path, victim, **changed):
    """A table of one ready victim and one defence."""
    given = {"out": str(tmp_path / "t"), "attacks": (), "data": (), "victims": (victim,), "defences": ("ft",)}
    return replace(config, **given | changed)


def figures_at_once(cell):
    """The figures of a cell, without any defence."""
    return FIGURES


def no_training(training):
    """In place of training a victim."""


def outcome_row(seed, asr, seconds=2.0, where="here"):
    figures = {"acc_before": 0.9, "acc": 0.88, "asr_before": 1.0, "asr": asr, "ra_before": 0.0, "ra": 0.5}
    names = {"victim": "v", "attack": "a", "arch": "n", "data": "d", "defence": "clp", "decision": "repaired"}
    rest = {"seed": seed, "asr_untriggered": 0.01, "der": 0.9, "seconds": seconds, "asr_oracle": 0.0, "where": where}
    return names | figures | rest
