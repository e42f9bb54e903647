"""Files of triggers, which may come from anybody: what cannot be used is refused in one sentence."""

import json

import pytest
import torch
from helpers.made_triggers import images, trigger_for
from safetensors import safe_open
from safetensors.torch import save_file

from onp.attack.triggers import TRIGGERS, load_trigger
from onp.errors import InputError

NAN = float("nan")


def written(name, folder):
    """The file of a trigger, its tensors and its scalars."""
    path = folder / "trigger.safetensors"
    trigger_for(name, (3, 16, 16)).save(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return path, tensors, json.loads(file.metadata()["onp.scalars"])


def rewritten(path, name, tensors, scalars):
    text = scalars if isinstance(scalars, str) else json.dumps(scalars)
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, str(path), {"onp.trigger": name, "onp.scalars": text}
    )
    return path


def refused(path):
    with pytest.raises(InputError, match=r"trigger\.safetensors is not a trigger written by onp\.attack") as error:
        load_trigger(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger_survives_its_file(name, tmp_path):
    trigger = trigger_for(name)
    trigger.save(tmp_path / "trigger.safetensors")
    again = load_trigger(tmp_path / "trigger.safetensors")
    before = images()
    assert type(again) is type(trigger) and torch.equal(again(before), trigger(before))


@pytest.mark.parametrize("content", [b"", b"not a trigger", b"\x00" * 64])
def test_a_file_that_is_no_trigger_is_refused(content, tmp_path):
    (tmp_path / "trigger.safetensors").write_bytes(content)
    refused(tmp_path / "trigger.safetensors")


def test_a_missing_trigger_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trigger file"):
        load_trigger(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("laser", "'laser'"), ("\x1b]0;title\x07\nerror", r"'\\x1b\]0;title\\x07\\nerror'"), ("\u202egnp", r"'\\u202egnp'")],
)
def test_a_trigger_of_an_unknown_kind_is_named_without_control_characters(kind, shown, tmp_path):
    path = rewritten(tmp_path / "trigger.safetensors", kind, {"pattern": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=f"of the unknown kind {shown}") as error:
        load_trigger(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("blended", {"pattern": torch.rand(16, 16)}),
        ("blended", {"pattern": torch.full((3, 16, 16), NAN)}),
        ("blended", {"pattern": torch.full((3, 16, 16), 7.0)}),
        ("blended", {"pattern": torch.ones((3, 16, 16), dtype=torch.int64)}),
        ("blended", {"pattern": torch.empty((0, 16, 16))}),
        ("badnets", {"pattern": torch.rand(3)}),
        ("badnets", {"pattern": torch.rand(3, 3)}),
        ("wanet", {"grid": torch.zeros(1, 16, 16, 3)}),
        ("wanet", {"grid": torch.full((1, 16, 16, 2), NAN)}),
        ("ssba", {"secret": torch.zeros(16, 16)}),
        ("ssba", {"secret": torch.zeros(1, 2, 2)}),
        ("ssba", {"encoder.out.weight": torch.zeros(3)}),
        ("ssba", {"encoder.down.0.0.weight": torch.zeros(8, 4)}),
        ("input_aware", {"masker.down.0.0.weight": torch.zeros(8)}),
        ("input_aware", {"generator.out.bias": torch.full((3,), NAN)}),
        ("input_aware", {"generator.out.weight": torch.zeros(3, 0, 1, 1)}),
    ],
)
def test_tensors_that_make_no_trigger_are_refused(name, changes, tmp_path):
    path, tensors, scalars = written(name, tmp_path)
    refused(rewritten(path, name, tensors | changes, scalars))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("blended", {"alpha": alpha}) for alpha in ("x", 1e308, -1.0, 0.0, NAN, True, None, [0.2], 10**400)),
        *(("bpp", {"levels": levels}) for levels in ("x", 0, 1, 8.0, 2**70)),
        ("bpp", {"dither": 1}),
        *(("filter", {"amount": amount}) for amount in (-0.5, 1e308, "1")),
        *(("ssba", {"amount": amount}) for amount in (1e308, {})),
        ("blended", {"beta": 1.0}),
    ],
)
def test_scalars_that_make_no_trigger_are_refused(name, changes, tmp_path):
    path, tensors, scalars = written(name, tmp_path)
    refused(rewritten(path, name, tensors, scalars | changes))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"alpha":' * 100_000, "", "[]", "[[]]", "1", "{", '"\\ud800"'])
def test_scalars_that_are_no_object_are_refused(text, tmp_path):
    path, tensors, _ = written("blended", tmp_path)
    refused(rewritten(path, "blended", tensors, text))


def test_a_dictionary_for_a_tensor_and_a_tensor_for_a_dictionary_are_refused(tmp_path):
    path, tensors, scalars = written("blended", tmp_path)
    refused(rewritten(path, "blended", {"pattern.a": tensors["pattern"]}, scalars))
    refused(rewritten(path, "blended", {"pattern": tensors["pattern"], "alpha": torch.tensor(0.2)}, {}))
    path, tensors, scalars = written("ssba", tmp_path)
    refused(rewritten(path, "ssba", {"secret": tensors["secret"], "encoder": tensors["encoder.out.weight"]}, scalars))


@pytest.mark.parametrize("name", ["ssba", "input_aware"])
def test_a_generator_with_missing_weights_is_refused(name, tmp_path):
    path, tensors, scalars = written(name, tmp_path)
    fewer = {key: value for key, value in tensors.items() if not key.endswith("up.1.0.weight")}
    assert len(fewer) < len(tensors)
    refused(rewritten(path, name, fewer, scalars))


def test_a_file_without_the_metadata_of_a_trigger_is_refused(tmp_path):
    path, tensors, _ = written("blended", tmp_path)
    save_file(tensors, str(path))
    refused(path)
    save_file(tensors, str(path), {"onp.trigger": "blended"})
    refused(path)
