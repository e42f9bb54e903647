"""What a mask leaves to compute: base outputs pruned instead of computed, channels left out."""

import numpy as np
import pytest
import torch

from onp.data.normalisation import Normalisation
from onp.engine.incremental import changed_steps, needed_channels, producers, pruned_output
from onp.engine.plan import Plan, plan_of
from onp.engine.settings import Tuning
from onp.engine.steps import ConvStep, OpStep, bind_torch, narrowed
from onp.model.archs import build_network
from onp.model.victim import victim_from_module


@pytest.fixture(scope="module", params=["resnet18:width=4", "preact_resnet18:width=4", "vgg11_bn:width=4"])
def plan(request) -> Plan:
    return plan_of(victim_from_module(build_network(request.param), Normalisation.parse("none"), (3, 32, 32)))


def gated_steps(plan: Plan) -> list[int]:
    return [index for index, step in enumerate(plan.steps) if step.mask_slice is not None]


def test_the_first_changed_step_is_not_computed_again(plan):
    for index in gated_steps(plan):
        todo = changed_steps(plan, {index: True}, index)
        assert todo.start > index and todo.gated == (index,)
        between = plan.steps[index + 1 : todo.start]
        assert not any(plan.steps[index].name in step.inputs for step in between)
        regrown = changed_steps(plan, {index: False}, index)
        assert (regrown.start, regrown.gated) == (index, ())


def test_what_reads_a_changed_value_is_computed_again(plan):
    gated = gated_steps(plan)
    todo = changed_steps(plan, dict.fromkeys(gated, True), gated[0])
    stale = {plan.steps[index].name for index in todo.gated}
    assert stale.intersection(plan.steps[todo.start].inputs) or plan.steps[todo.start].mask_slice is not None
    assert all(not stale.intersection(plan.steps[index].inputs) for index in todo.gated)


def test_nothing_changed_leaves_nothing(plan):
    assert changed_steps(plan, {}, len(plan.steps)).start == len(plan.steps)


def test_pruned_outputs_are_those_of_pruned_weights(plan):
    for index in gated_steps(plan):
        step = plan.steps[index]
        shapes = [plan.shapes[name] for name in step.inputs]
        inputs = [torch.randn(3, *shape) for shape in shapes if shape is not None]
        added = inputs[1] if isinstance(step, ConvStep) and step.adds else None
        before = None if added is None else added.clone()
        keep = torch.rand(step.mask_slice.units) > 0.5
        value = bind_torch(step, None, torch.float32)(*inputs)
        found = pruned_output(step, value, added, keep)
        expected = bind_torch(step, keep.float(), torch.float32)(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert before is None or torch.equal(added, before)
        assert not isinstance(step, OpStep)


def test_channels_left_out_between_two_convs_change_nothing(plan):
    found = producers(plan)
    assert found
    for reader, index in found.items():
        producer, step = plan.steps[index], plan.steps[reader]
        units = torch.rand(producer.mask_slice.units) > 0.5
        units[torch.randint(len(units), ())] = True  # `needed_channels` never leaves none
        needed = units.nonzero()[:, 0]
        x = torch.randn(2, *plan.shapes[producer.inputs[0]])
        added = [torch.randn(2, *plan.shapes[name]) for name in step.inputs[1:]]
        whole = bind_torch(producer, units.float(), torch.float32)(x)
        part = bind_torch(narrowed(producer, needed, None), None, torch.float32)(x)
        expected = bind_torch(step, None, torch.float32)(whole, *added)
        torch.testing.assert_close(
            bind_torch(narrowed(step, None, needed), None, torch.float32)(part, *added), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("units", "kept", "itemsize", "computed"),
    [(64, 61, 4, None), (64, 48, 4, 48), (64, 33, 4, 48), (64, 0, 4, 16), (8, 3, 4, None), (64, 33, 2, None), (64, 31, 2, 32)],
)
def test_needed_channels_come_in_lanes(units, kept, itemsize, computed):
    keep = np.zeros(units, dtype=bool)
    keep[np.random.default_rng().permutation(units)[:kept]] = True
    needed = needed_channels(keep, Tuning().lane_bytes // itemsize)
    if computed is None:
        assert needed is None
    else:
        assert len(needed) == computed and (needed.diff() > 0).all()
        assert keep[needed].sum() == kept
