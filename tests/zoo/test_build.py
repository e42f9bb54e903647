"""Training the networks of a zoo, measuring them, and going on where a run stopped."""

import json
from dataclasses import replace

import pytest
import torch

from onp.attack.poisoning import poisoner_for
from onp.data.normalisation import Normalisation
from onp.zoo.__main__ import main
from onp.zoo.build import Task, make
from onp.zoo.datasets import drawn, images_of
from onp.zoo.detection import Task as Dossier
from onp.zoo.detection import measure, pack, read_dossiers
from onp.zoo.distribution import Distribution
from onp.zoo.entry import read_zoo
from onp.zoo.post_processing import processed
from onp.zoo.recipe import Planted
from onp.zoo.training import Poisoners, attack_config, instance, planting, train_network

TARGET = 3


def recipe(*backdoors, after="none"):
    one = Distribution().draw(1, 0, ("shapes",))
    training = replace(
        one.training, labels=tuple(range(10)), arch="vgg11_bn", width=4, norm="half", images=900, epochs=3, optimiser="sgd",
        lr=0.1, batch=48, smoothing=0.0, averaging=0.0, pad=0, flip=False, imbalance=1.0,
    )  # fmt: skip
    return replace(one, training=training, backdoors=backdoors, after=after)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    planted = Planted("badnets", TARGET, 0.1, None), Planted("blended", 5, 0.1, 0.4)
    make(Task(str(folder), recipe(*planted, after="half"), (), True))
    return folder


def test_the_card_says_what_the_files_are(zoo):
    (entry,) = read_zoo(zoo)
    card = entry.card
    assert [each["attack"] for each in card["backdoors"]] == ["badnets", "blended"] and not card["clean"]
    assert [each["family"] for each in card["backdoors"]] == ["patch", "blend"] and card["after"] == "half"
    victim = entry.victim()
    assert all(
        torch.equal(value, value.half().float()) for value in victim.model.state_dict().values() if value.is_floating_point()
    )
    test = entry.test()
    for (trigger, target), told in zip(entry.triggers(), card["backdoors"], strict=True):
        others = test.subset(test.labels != target)
        with torch.no_grad():
            asr = (victim.logits(trigger(others.pixels())).argmax(1) == target).float().mean()
        assert told["target"] == target and told["asr"] == pytest.approx(float(asr), abs=2e-3)


def test_clean_splits_and_test_images_share_no_image(zoo):
    (entry,) = read_zoo(zoo)
    parts = [entry.clean(0), entry.clean(1), entry.clean(2), entry.test()]
    seen = [{bytes(image.flatten().tolist()) for image in part.images} for part in parts]
    assert [len(part) for part in parts] == [500, 500, 500, 1000]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_a_dossier_holds_the_scan_and_its_file_the_card(zoo):
    (entry,) = read_zoo(zoo)
    first = measure(Dossier(entry, 0, True))
    assert (
        all(len(values) == 10 for values in first["detectors"].values())
        and first["batch_norms"] == 8
        and first["disagreement"] > 0
    )
    pack([entry], zoo / "detection.jsonl.gz")
    (read,) = read_dossiers(zoo / "detection.jsonl.gz")
    assert read["detectors"] == first["detectors"] and read["card"]["backdoors"] == entry.card["backdoors"]
    assert "files" not in read["card"]


def test_two_backdoors_never_share_an_image():
    images = drawn(images_of("shapes", "train", tuple(range(10))), 300, 0)
    one = recipe(Planted("badnets", 1, 0.4, None), Planted("blended", 2, 0.4, None))
    config = attack_config(one, 3)
    parts = []
    for number, planted in enumerate(one.backdoors):
        settings = planting(config, planted, number, images)
        trigger = instance(planted, images, torch.Generator().manual_seed(number))
        parts.append(poisoner_for(trigger, images.labels, settings, 10))
    poisoners = Poisoners(parts)
    assert not bool((parts[0].chosen & parts[1].chosen).any()) and bool(parts[1].chosen.any())
    index = torch.arange(300)
    changed, labels, _ = poisoners(images.pixels(), images.labels, index, torch.Generator())
    assert bool((labels[parts[0].chosen] == 1).all()) and bool((labels[parts[1].chosen] == 2).all())
    untouched = ~(parts[0].chosen | parts[1].chosen)
    assert torch.equal(changed[untouched], images.pixels()[untouched])
    assert torch.equal(labels[untouched], images.labels[untouched])


@pytest.mark.parametrize("attack", ["badnets", "blended", "sig"])
def test_instances_differ_from_network_to_network(attack):
    images = images_of("shapes", "test", (0, 1))
    planted = Planted(attack, 0, 0.1, None)
    some, again, other = (instance(planted, images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    pixels = images.subset(range(20)).pixels()
    assert torch.equal(some(pixels), again(pixels)) and not torch.equal(some(pixels), other(pixels))


def test_new_statistics_are_those_of_clean_images(tmp_path):
    images = drawn(images_of("shapes", "train", tuple(range(10))), 300, 0)
    one = recipe()
    network = train_network(replace(one, training=replace(one.training, epochs=1)), images, tmp_path).network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network, after = processed(network, "bn_statistics", images, attack_config(one, 3))
    state = network.state_dict()
    assert after == "bn_statistics"
    assert all(torch.equal(state[key], before[key]) for key in before if "running" not in key and "num_batches" not in key)
    inputs = network.features[0](Normalisation.parse("half")(images.pixels()))
    assert torch.allclose(state["features.1.running_mean"], inputs.mean((0, 2, 3)), atol=0.05)


def test_the_command_trains_what_is_missing_and_refuses_another_zoo(tmp_path, capsys):
    out = tmp_path / "zoo"
    wanted = json.loads(json.dumps({"index": 0}))
    folder = out / "networks" / "0000"
    folder.mkdir(parents=True)
    card = make_card()
    (folder / "card.json").write_text(json.dumps(card | wanted))
    command = ["build", "--out", str(out), "--count", "1", "--workers", "0", "--quiet"]
    assert main(command) == 0
    assert "1 networks: 1 clean" in capsys.readouterr().out
    assert main([*command, "--seed", "2"]) == 2
    assert "holds a zoo with another seed" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "build" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["dossiers", "--out", str(tmp_path / "none")]) == 2
    assert "onp zoo build" in capsys.readouterr().err


def make_card():
    one = recipe()
    return one.card() | {"arch": "vgg11_bn:width=4", "clean": True, "acc": 0.9, "seconds": 1.0, "files": []}
