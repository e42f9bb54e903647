"""The scan of all classes: what it depends on."""

import math
from dataclasses import replace

import numpy as np
import torch
from helpers.image_writers import png, write_folder

from onp.data.images import ImageSet, joined, load_images, split
from onp.data.normalisation import Normalisation
from onp.detect.bn_statistics import bn_statistics
from onp.detect.classes_to_invert import most_inverted
from onp.detect.config import DetectConfig, DetectRun, InversionConfig
from onp.detect.scan import scan, scan_steps
from onp.detect.separability import SEPARABILITY
from onp.model.archs import build_network
from onp.model.victim import victim_from_module

SHORT = DetectRun(DetectConfig(scan=InversionConfig(steps=4, images=4)))


def scanned(victim, images, run=SHORT):
    clean = split(images, run.seed)
    return scan(victim, clean, bn_statistics(victim, joined(clean.build, clean.score)), run)


def test_the_order_of_the_images_and_their_format_change_no_bit_of_the_scores(backdoored, small, tmp_path, one_thread):
    given = small.clean_images()
    order = np.random.default_rng(3).permutation(len(given))
    for name, index in (("given", np.arange(len(given))), ("shuffled", order)):
        images, labels = given.images.numpy()[index], given.labels.numpy()[index]
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, class_names=np.array(given.class_names))
        names = [f"{label}/{place}.png" for place, label in enumerate(labels)]
        members = {name: png(image[0]) for name, image in zip(names, images, strict=True)}
        write_folder(tmp_path / name, members)
    sources = [tmp_path / name for name in ("given.npz", "shuffled.npz", "given", "shuffled")]
    first, *others = (scanned(backdoored.victim, load_images(source)) for source in sources)
    for scores in others:
        assert scores.log_costs == first.log_costs


def test_of_many_classes_a_few_are_inverted_and_all_have_the_other_scores(one_thread):
    network = build_network("vgg11_bn:width=4,classes=30,channels=1")
    victim = victim_from_module(network, Normalisation.parse("half"), (1, 32, 32))
    pixels = torch.randint(0, 256, (90, 1, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(90) % 30, tuple(map(str, range(30))))
    steps = []
    run = replace(SHORT, progress=lambda count=1, known=False: steps.append(count))
    scores = scanned(victim, images, run)
    inverted = {"patch", "perturbation", "low_frequency", "warp", "early_features", "spectrum", "small_patch", "pgd"}
    missing = {name: [k for k, value in enumerate(values) if math.isnan(value)] for name, values in scores.log_costs.items()}
    left_out = missing["patch"]
    assert len(left_out) == 30 - most_inverted(30) and inverted < set(missing)
    # Three images are too few to tell what the class's own features are.
    assert SEPARABILITY not in missing
    assert all(without == (left_out if name in inverted else []) for name, without in missing.items())
    assert [k for k, index in enumerate(scores.anomaly_index["patch"]) if math.isnan(index)] == left_out
    assert sum(steps) == scan_steps(run.config)
