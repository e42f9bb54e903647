"""The order of the classes: as it is stated, and found in predictions; a correct order is not taken for a mistake."""

import numpy as np
import pytest
import torch

from onp.data.images import ImageSet
from onp.defend.class_order import ClassOrder, better_order, check_names, in_order, read_class_order
from onp.errors import InputError


def predictions_of(rates, count, seed):
    """Labels and predictions of `count` images a class, by the rates `[classes, classes]` of a network."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(rates)), count)
    predicted = [rng.choice(len(rates), p=rates[label]) for label in labels]
    return torch.as_tensor(labels), torch.as_tensor(np.array(predicted))


def network(classes, acc, seed):
    """Rates of a network whose mistakes go to a few similar classes, the more the worse a class is known."""
    rng = np.random.default_rng(seed)
    rates = rng.dirichlet(np.full(classes, 0.1), classes)
    own = np.clip(rng.normal(acc, 0.2, classes), 0.05, 1)[:, None]
    return own * np.eye(classes) + (1 - own) * rates


@pytest.mark.parametrize(("classes", "count", "acc"), [(10, 50, 0.9), (10, 20, 0.6), (43, 5, 0.8), (43, 12, 0.6)])
def test_another_order_is_found_and_the_right_one_left_alone(classes, count, acc):
    for seed in range(6):
        labels, predicted = predictions_of(network(classes, acc, seed), count, seed)
        assert better_order(labels, predicted, classes) is None
        order = ClassOrder(tuple(np.random.default_rng(seed).permutation(classes).tolist()))
        back = torch.tensor(order.outputs).argsort()  # the label under which each class of the network is found
        found = better_order(back[labels], predicted, classes)
        assert found is not None
        same = sum(a == b for a, b in zip(found.outputs, order.outputs, strict=True))
        assert same >= 0.7 * classes  # classes that are hardly known cannot be told apart


def test_two_classes_that_change_places_are_enough():
    labels, predicted = predictions_of(network(10, 0.85, 1), 40, 1)
    swapped = torch.where(labels == 2, 7, torch.where(labels == 7, 2, labels))
    found = better_order(swapped, predicted, 10)
    assert found is not None and found.moved == (2, 7) and found.outputs[2] == 7
    assert torch.equal(found.relabelled(swapped), labels)


def test_merged_classes_are_no_other_order():
    """0 is taken for 1, and 1 for 2, which is known: to move them would cost the third class."""
    rates = np.eye(10) * 0.8 + 0.02
    for label, other in ((0, 1), (1, 2)):
        rates[label] = 0.01
        rates[label, other] = 0.91
    labels, predicted = predictions_of(rates / rates.sum(1, keepdims=True), 50, 0)
    assert better_order(labels, predicted, 10) is None


def test_few_images_of_a_class_prove_nothing():
    labels, predicted = predictions_of(np.eye(10), 2, 0)
    assert better_order((labels + 1) % 10, predicted, 10) is None
    labels = torch.arange(10).repeat_interleave(30)
    # Two classes of three images each in each other's place, among many that are right.
    few = torch.tensor([0, 1]).repeat_interleave(3)
    labels, predicted = torch.cat((labels[60:], few)), torch.cat((labels[60:], 1 - few))
    assert better_order(labels, predicted, 10) is None


def test_missing_classes():
    """Four labels of a network of six classes, the third of which has no images."""
    labels = torch.arange(4).repeat_interleave(20)
    outputs = torch.tensor([0, 1, 3, 4])
    found = better_order(labels, outputs[labels], 6)
    assert found is not None and found.outputs[:4] == (0, 1, 3, 4)


def test_tens_of_thousands_of_classes_need_no_large_table():
    labels = torch.arange(40).repeat_interleave(10) * 1000
    found = better_order(labels, (labels + 1000) % 40_000, 50_000)
    assert found is not None and len(found.outputs) == 50_000 and found.outputs[39_000] == 0 and len(found.moved) == 40


def test_names_from_a_file_or_a_list(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffshirt\nankle boot\n\nbag\n")
    assert read_class_order(str(tmp_path / "names.txt")) == ("shirt", "ankle boot", "bag")
    assert read_class_order("shirt, ankle boot,bag") == ("shirt", "ankle boot", "bag")
    assert len(read_class_order(",".join(map(str, range(1000))))) == 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [("nowhere.txt", "no file nowhere.txt"), ("a,b,a", "names a twice"), ("a,,b", "an empty name"), ("{}", "no text in UTF-8")],
)
def test_bad_names_are_one_sentence(tmp_path, text, says):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=says) as refused:
        read_class_order(text.format(tmp_path / "bytes"))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_class_order(str(tmp_path))


def test_images_are_counted_in_the_order_given():
    pixels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    named = ImageSet(pixels, torch.tensor([0, 1, 2]), ("ant", "bee", "cat"))
    found = in_order(named, ("cat", "dog", "bee", "ant"), 4)
    assert found.labels.tolist() == [3, 2, 0] and found.class_names == ("cat", "dog", "bee", "ant")
    numbered = ImageSet(pixels, torch.tensor([0, 1, 2]), ("0", "1", "2"))
    assert in_order(numbered, ("2", "1", "0"), 3).labels.tolist() == [2, 1, 0]
    # Other images with the same numbers are counted alike.
    assert numbered.relabelled(("2", "1", "0")).labels.tolist() == [2, 1, 0]
    assert in_order(numbered, ("cat", "bee", "ant"), 3).labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="2 names, and the network 3"):
        in_order(named, ("ant", "bee"), 3)
    with pytest.raises(InputError, match="lacks cat, of which"):
        in_order(named, ("ant", "bee", "cow"), 3)
    with pytest.raises(InputError, match="twice"):
        check_names(["a", "a"])
