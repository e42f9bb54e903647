"""Pruned channels taken out for good: the smaller network gives the answers of the masked one, on any batch."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from onp.data.normalisation import Normalisation
from onp.defend.__main__ import main
from onp.defend.outputs import write_outputs
from onp.errors import InputError
from onp.model import shrink as shrinking
from onp.model.archs import build_network
from onp.model.mask import Mask
from onp.model.prune import prune
from onp.model.shrink import shrink, write_shrunk
from onp.model.victim import victim_from_module

pytest.importorskip("torch_pruning")


def trained_like(network: nn.Module) -> nn.Module:
    """Norms away from 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5)
    return network.eval()


def victim_of(arch: str):
    return victim_from_module(trained_like(build_network(arch)), Normalisation.parse("none"), (3, 32, 32))


@pytest.mark.parametrize("arch", ["resnet18:width=4", "preact_resnet18:width=4", "mobilenet_v2:width=8"])
def test_the_smaller_network_answers_as_the_masked_one(arch, tmp_path):
    victim = victim_of(arch)
    mask = Mask.of(victim, torch.rand(victim.units) > 0.3)
    repaired = prune(victim, mask)
    shrunk = shrink(repaired, mask)
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(shrunk.network(images), repaired.model(images), rtol=1e-3, atol=1e-3)
    assert shrunk.removed and shrunk.parameters[1] < shrunk.parameters[0]
    for name, count in shrunk.removed.items():
        assert shrunk.network.get_submodule(name).weight.shape[0] == repaired.model.get_submodule(name).weight.shape[0] - count
    pruned = {name for name, keep in mask.by_layer().items() if not keep.all()}
    assert pruned <= shrunk.removed.keys() | shrunk.kept.keys(), "every pruned layer is accounted for"


def test_a_channel_of_a_sum_goes_when_all_that_is_added_lost_it():
    victim = victim_of("resnet18:width=4")
    tied = [layer for layer in victim.layers if layer.group == victim.layers[0].group]
    assert len(tied) > 1
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[tied[0].offset] = False
    mask = Mask.of(victim, keep)
    shrunk = shrink(prune(victim, mask), mask)
    assert not shrunk.removed and "added" in shrunk.kept[tied[0].name]
    for layer in tied:
        keep[layer.offset] = False
    mask = Mask.of(victim, keep)
    assert shrink(prune(victim, mask), mask).removed == {layer.name: 1 for layer in tied}


def test_a_layer_that_lost_everything_keeps_its_zeros():
    victim = victim_of("vgg11_bn:width=4")
    layer = victim.layers[2]
    keep = torch.ones(victim.units, dtype=torch.bool)
    keep[layer.offset : layer.offset + layer.units] = False
    mask = Mask.of(victim, keep)
    shrunk = shrink(prune(victim, mask), mask)
    assert not shrunk.removed and "all of its channels" in shrunk.kept[layer.name]


def test_files_that_other_programs_read(tmp_path):
    victim = victim_of("vgg11_bn:width=4")
    mask = Mask.of(victim, torch.arange(victim.units) % 5 != 0)
    repaired = prune(victim, mask)
    names = write_shrunk(shrink(repaired, mask), victim.input_shape, tmp_path)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = repaired.model(images)
    program = torch.export.load(tmp_path / "shrunk.pt2").module()
    torch.testing.assert_close(program(images), expected, rtol=1e-3, atol=1e-3)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert names == ("shrunk.pt2", "shrunk.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "shrunk.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shrinking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install '\.\[shrink\]'"):
        shrinking.check_shrinking()


def test_the_report_and_the_folder_hold_it(outcome, tmp_path, report_schema):
    report = replace(outcome.report, shrunk=shrink(outcome.victim, outcome.mask))
    write_outputs(replace(outcome, report=report), str(tmp_path / "out"))
    assert (tmp_path / "out" / "shrunk.pt2").exists()
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    report_schema.validate(document)
    assert document["shrunk"]["parameters"][1] < document["shrunk"]["parameters"][0]
    assert report.shrunk.to_text() in " ".join((tmp_path / "out" / "report.txt").read_text().split())
    assert report.shrunk.to_text() in (tmp_path / "out" / "report.html").read_text()


def test_the_command_asks_for_the_package_before_it_works(monkeypatch, capsys):
    monkeypatch.setattr("onp.model.shrink.importlib.util.find_spec", lambda name: None)
    assert main(["--shrink", "--quiet"]) == 2
    assert "pip install '.[shrink]'" in capsys.readouterr().err
