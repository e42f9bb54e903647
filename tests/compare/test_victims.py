"""The victims of a table: cards, triggers, and trainings that were begun with other settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_tables import other_table, ready_victim

from onp.compare import CompareConfig, compare
from onp.compare.datasets import Datasets
from onp.compare.victims import planned_trainings, ready_victims
from onp.data.images import load_images
from onp.defend.demos import DEMOS
from onp.errors import InputError


def test_an_unfinished_victim_of_other_images_is_refused_before_any_work(config, rows, tmp_path):
    table = replace(config, out=str(tmp_path / "t"), attacks=("badnets",))
    (training,) = planned_trainings(table, Datasets(table, tmp_path / "t"))
    kept = Path(training.config.out) / "unfinished"
    kept.mkdir(parents=True)
    (kept / "settings.json").write_text(json.dumps({"norm": "half", "data": "others"}))
    with pytest.raises(InputError, match="other images as --data"):
        planned_trainings(table, Datasets(table, tmp_path / "t"))


def test_a_ready_victim_is_not_measured_on_its_training_images(config, rows, tmp_path):
    victim = ready_victim(config, rows, tmp_path / "vic")
    with pytest.raises(InputError, match=r"About 600 of the 600 images of --test-data .* not trained on"):
        compare(other_table(config, tmp_path, victim, test_data=config.data))


def test_the_card_says_whether_there_is_a_trigger(config, rows, tmp_path):
    stale = ready_victim(config, rows, tmp_path / "stale", attack="none")
    table = other_table(config, tmp_path, stale)
    assert ready_victims(table, Datasets(table, tmp_path))[0].trigger is None
    lacks = ready_victim(config, rows, tmp_path / "lacks")
    (tmp_path / "lacks" / "trigger.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks trigger\.safetensors"):
        compare(replace(table, victims=(lacks,)))
    shutil.copytree(config.out, tmp_path / "copy")
    (tmp_path / "copy" / "victims" / rows[0]["victim"] / "trigger.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks trigger\.safetensors"):
        compare(replace(config, out=str(tmp_path / "copy")))


def test_a_few_test_images_that_are_trained_on_give_a_warning(config, tmp_path, caplog):
    train, test = load_images(config.data[0]), load_images(config.test_data[0])
    images = torch.cat((test.images, train.images[:3]))
    np.savez(tmp_path / "few.npz", images=images.numpy(), labels=torch.cat((test.labels, train.labels[:3])).numpy())
    table = replace(config, out=str(tmp_path / "t"), test_data=(str(tmp_path / "few.npz"),))
    assert len(planned_trainings(table, Datasets(table, tmp_path / "t"))) == 2
    assert "3 of the 303 images" in caplog.text


def test_embedded_victims_have_names():
    table = CompareConfig(out="t", victims=("wanet", "clean"))
    assert [victim.name for victim in ready_victims(table, None)] == ["wanet", "clean"]
    every = ready_victims(replace(table, victims=("bundled",)), None)
    assert every == ready_victims(replace(table, victims=()), None) and {victim.name for victim in every} == set(DEMOS)
    with pytest.raises(InputError, match="Two victims have one name"):
        compare(replace(table, victims=("bundled", "wanet")))


def test_a_card_is_for_people(config, rows):
    """The hashes of training images lie in a file of their own."""
    folder = Path(config.out) / "victims" / rows[0]["victim"]
    assert all(len(line) < 300 for line in (folder / "card.json").read_text().splitlines())
    assert len((folder / "training_sample.txt").read_text().splitlines()) > 100
