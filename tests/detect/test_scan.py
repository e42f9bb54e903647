"""The scan of all classes: what it depends on."""

import numpy as np
from helpers.image_writers import png, write_folder

from onp.data.images import joined, load_images, split
from onp.detect.bn_statistics import bn_statistics
from onp.detect.config import DetectConfig, DetectRun, InversionConfig
from onp.detect.scan import scan

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
