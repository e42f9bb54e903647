"""The images of a table: splits by class, and other images under the same name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_tables import figures_at_once, no_training, other_table, ready_victim, write_images

from onp.compare import compare
from onp.compare.datasets import Datasets
from onp.compare.victims import ready_victims
from onp.data.images import load_images
from onp.errors import InputError


def test_no_defence_gets_an_image_that_is_measured_on(config, rows):
    clean, evaluation = Datasets(config, Path(config.out)).split(config.test_data[0], 1)
    ours, others = load_images(clean), load_images(evaluation)
    assert (len(ours), len(others)) == (120, 150)
    assert torch.bincount(ours.labels).tolist() == [40, 40, 40] and set(others.labels.tolist()) == {0, 1, 2}
    seen = {image.numpy().tobytes() for image in ours.images}
    assert not seen & {image.numpy().tobytes() for image in others.images}


def test_another_test_set_of_the_same_name_is_refused(config, rows, tmp_path):
    victim = ready_victim(config, rows, tmp_path / "vic")
    table = other_table(config, tmp_path, victim)
    assert len(compare(table, figures_at_once, no_training)) == 1 == len(compare(table, figures_at_once, no_training))
    other = write_images(tmp_path / "elsewhere" / "test.npz", 300, 5)
    with pytest.raises(InputError, match="split from other images"):
        compare(replace(table, test_data=(other,)), figures_at_once, no_training)
    train = write_images(tmp_path / "second.npz", 600, 2)
    both = {"data": (config.data[0], train), "test_data": (config.test_data[0], other)}
    with pytest.raises(InputError, match="Two --test-data have the short name 'test'"):
        compare(replace(config, out=str(tmp_path / "both"), **both))
    assert not (tmp_path / "both").exists()


def test_another_training_set_or_normalisation_of_a_victim_is_refused(config, rows):
    with pytest.raises(InputError, match="other --norm"):
        compare(replace(config, norm=("none",)))
    path = Path(config.out).parent / "other" / "train.npz"
    for attacks in (config.attacks, ("badnets",)):
        with pytest.raises(InputError, match=r"other images than those of .*train\.npz"):
            compare(replace(config, attacks=attacks, data=(write_images(path, 600, 4),)))
    mark = Path(config.out) / "data" / "train-1" / "train.txt"
    digest = mark.read_text()
    mark.unlink()  # as where only the victim is left
    with pytest.raises(InputError, match="other images as --data"):
        compare(replace(config, data=(str(path),)))
    mark.write_text(digest)


def test_a_test_set_that_lacks_a_class_is_labelled_as_the_victim_labels(config, rows, tmp_path):
    """Its own labels count the classes it holds: 0 is 'b', 1 is 'c'."""
    images = load_images(config.test_data[0])
    some = images.subset(images.labels > 0)
    path = tmp_path / "some.npz"
    np.savez(path, images=some.images.numpy(), labels=some.labels.numpy() - 1, class_names=np.array(["b", "c"]))
    named = ready_victim(config, rows, tmp_path / "named", class_names=["a", "b", "c"])
    unnamed = ready_victim(config, rows, tmp_path / "unnamed", class_names=None)
    table = other_table(config, tmp_path, named, victims=(named, unnamed), test_data=(str(path),), clean=60)
    datasets = Datasets(table, tmp_path)
    first, second = ready_victims(table, datasets)
    datasets.write()
    assert set(load_images(first.clean).labels.tolist()) == set(load_images(first.evaluation).labels.tolist()) == {1, 2}
    assert load_images(first.evaluation).class_names == ("a", "b", "c")
    assert set(load_images(second.evaluation).labels.tolist()) == {0, 1}, "a card without names leaves them as they are"
    with pytest.raises(InputError, match="b, c, that are not among those of the victim, x, y, z"):
        other = ready_victim(config, rows, tmp_path / "x", class_names=["x", "y", "z"])
        ready_victims(replace(table, victims=(other,)), datasets)
