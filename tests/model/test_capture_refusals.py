"""Networks that are no classifier of single images, or no fixed function, are refused in a sentence."""

import pytest
import torch
import torch.nn.functional as F
from helpers.odd_networks import Vgg
from torch import nn

from onp.data.normalisation import Normalisation
from onp.errors import InputError
from onp.model.capture import capture
from onp.model.victim import victim_from_module

SIZE = 12


def refused(network: nn.Module, shape=(3, SIZE, SIZE), classes=5) -> str:
    with pytest.raises(InputError) as error:
        victim_from_module(network, Normalisation.parse("half"), shape, classes)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_wrong_shapes_and_classes_are_refused():
    assert "does not take images of shape (1, 12, 12)" in refused(Vgg(), (1, SIZE, SIZE))
    assert "does not take images" in refused(Vgg(), (3, 20, 20))
    assert "5 logits, not 10" in refused(Vgg(), classes=10)
    assert "must return logits" in refused(nn.Sequential(nn.Conv2d(3, 5, 3)))
    assert "no prunable unit" in refused(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 5)))
    nan = Vgg()
    nn.init.constant_(nan.classifier.weight, float("inf"))
    assert "not finite" in refused(nan)


class BatchNormAlways(nn.Sequential):
    def train(self, mode: bool = True):
        return super().train(True)


class RandomInEval(Vgg):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.02))


class Rounded(Vgg):
    """As deep networks are whose library sums in another order for other numbers of images."""

    def forward(self, x):
        return super().forward(x) * (1 + 2.5e-3 * (x.shape[0] % 2))


class DataDependent(Vgg):
    def forward(self, x):
        out = super().forward(x)
        return out * 2 if out.sum() > 0 else out


def test_networks_without_a_fixed_function_are_refused():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 5)
    assert "other images" in refused(BatchNormAlways(*layers))
    assert "run to run" in refused(RandomInEval())
    assert "cannot be captured" in refused(DataDependent())


def test_rounding_is_no_reason():
    assert victim_from_module(Rounded(), Normalisation.parse("half"), (3, SIZE, SIZE)).units > 0


def test_capture_takes_logits_from_several_outputs_and_refuses_others():
    class Two(Vgg):
        def forward(self, x):
            return {"features": x, self.name: super().forward(x)}

    Two.name = "logits"
    network, x = Two().eval(), torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(capture(network, x)(x), network(x)["logits"])
    Two.name = "scores"
    with pytest.raises(InputError, match="one tensor of logits"):
        capture(Two().eval(), torch.randn(2, 3, SIZE, SIZE))


class InPlace(Vgg):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


def test_a_network_that_writes_to_its_input_is_told_so():
    assert "changes its input in place" in refused(InPlace())


class ByValue(Vgg):
    def forward(self, x):
        return super().forward(x if x.mean() > -9 else -x)


def test_what_cannot_be_captured_is_one_sentence(capfd):
    assert "cannot be captured by torch.export" in refused(ByValue())
    assert capfd.readouterr() == ("", "")
