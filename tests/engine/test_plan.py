"""The fused steps, their liveness, and the choice of cut points."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onp.data.normalisation import Normalisation
from onp.engine.incremental import ActivationCache, changed_steps, choose_cuts, live_values
from onp.engine.plan import Plan, plan_of
from onp.engine.steps import ConvStep, LinearStep, OpStep, ScaleStep, bind_torch
from onp.errors import InputError
from onp.model.archs import build_network
from onp.model.interpret import gated_forward, head_input
from onp.model.victim import Victim, victim_from_module


def victim_of(spec: str, size: int = 16) -> Victim:
    return victim_from_module(build_network(spec), Normalisation.parse("none"), (3, size, size))


def kinds(plan: Plan) -> dict[type, int]:
    return {kind: sum(type(step) is kind for step in plan.steps) for kind in (ConvStep, LinearStep, ScaleStep, OpStep)}


def run_plan(plan: Plan, x: Tensor) -> Tensor:
    """Runs the steps and asserts that no value is read outside its live range."""
    values = {plan.input: x}
    for index, step in enumerate(plan.steps):
        values = {name: values[name] for name in plan.live[index]}
        values[step.name] = bind_torch(step, None, torch.float32)(*[values[name] for name in step.inputs])
    assert plan.live[-1] == (plan.output,)
    return values[plan.output]


@pytest.mark.parametrize(
    ("spec", "convs", "norms", "adds"),
    [
        ("vgg11_bn:width=4", 8, 0, 0),
        ("resnet18:width=4", 20, 0, 8),
        ("preact_resnet18:width=4", 20, 8, 8),
        ("mobilenet_v2:width=8", 52, 0, 12),
    ],
)
def test_everything_fuses_in_the_built_in_networks(spec, convs, norms, adds):
    """One step for a conv with its norm, addition and activation; pre-activation nets keep the norms that read sums."""
    victim = victim_of(spec)
    plan = plan_of(victim)
    found = kinds(plan)
    assert (found[ConvStep], found[ScaleStep], found[LinearStep]) == (convs, norms, 1)
    assert sum(isinstance(step, ConvStep) and step.adds for step in plan.steps) == adds
    assert plan.unfused == ()
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(run_plan(plan, x), victim.model(x), rtol=1e-4, atol=1e-4)


def test_a_plan_is_made_once_for_a_victim_and_again_after_an_edit_of_its_weights():
    victim = victim_of("vgg11_bn:width=4")
    plan = plan_of(victim)
    assert plan_of(victim) is plan and plan.units == victim.units
    name = plan.steps[0].name
    assert plan_of(victim, [name]) is plan_of(victim, [name]) is not plan
    assert plan_of(victim_of("vgg11_bn:width=4")) is not plan
    with torch.no_grad():
        next(victim.model.parameters()).mul_(2)
    again, x = plan_of(victim), torch.randn(2, 3, 16, 16)
    assert again is not plan
    torch.testing.assert_close(run_plan(again, x), victim.model(x), rtol=1e-4, atol=1e-4)


def test_unknown_operators_are_named():
    class Erf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.erf(self.conv(x)).mean((2, 3)))

    plan = plan_of(victim_from_module(Erf(), Normalisation.parse("none"), (3, 8, 8)))
    assert plan.unfused == ("erf",)


def test_conv_output_read_twice_keeps_its_norm_apart():
    """A sum and a norm both read the conv: the norm cannot be folded into it."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head((self.out(torch.relu(self.norm(y))) + y).mean((2, 3)))

    victim = victim_from_module(Fork(), Normalisation.parse("none"), (3, 8, 8))
    plan = plan_of(victim)
    assert [type(step) for step in plan.steps] == [ConvStep, ScaleStep, ConvStep, OpStep, LinearStep]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(run_plan(plan, x), victim.model(x), rtol=1e-4, atol=1e-5)


def test_cuts_stay_under_the_budget_and_late_ones_come_first():
    plan = plan_of(victim_of("preact_resnet18:width=4"))
    steps = range(1, len(plan.steps))
    sizes = {
        i: sum(4 * math.prod(plan.shapes[name] or ()) for name in live_values(plan, i) if name != plan.input) for i in steps
    }
    starts = [changed_steps(plan, {i: True}, i).start for i, step in enumerate(plan.steps) if step.mask_slice]
    assert choose_cuts(plan, sizes, 100, 0, starts) == ()
    everything = choose_cuts(plan, sizes, 100, 1 << 40, starts)
    assert set(starts) <= set(everything)
    previous = 0.0
    for budget in (2 << 17, 2 << 19, 2 << 21, 1 << 40):
        cuts = choose_cuts(plan, sizes, 100, budget, starts)
        assert sum(sizes[cut] for cut in cuts) * 100 <= budget
        saved = sum(max((sum(plan.cost[:cut]) for cut in cuts if cut <= start), default=0.0) for start in starts)
        assert saved >= previous
        previous = saved
    assert previous > 0
    small = choose_cuts(plan, sizes, 100, 2 << 17, starts)
    assert small and min(small) > len(plan.steps) // 2
    gated = [index for index, step in enumerate(plan.steps) if step.mask_slice]
    assert choose_cuts(plan, sizes, 100, 1 << 40) == tuple(gated[1:]), "nothing is resumed behind a changed step"


def test_the_activation_cache_resumes_at_the_last_step_it_may():
    plan = plan_of(victim_of("vgg11_bn:width=4"))
    cache = ActivationCache(plan, 4, 4, 1 << 30)
    first, second, *_ = cache.cuts
    for cut in (first, second):
        cache.offer(0, cut, {name: torch.zeros(1) for name in live_values(plan, cut)})
    assert cache.resume(0, second)[0] == second
    assert cache.resume(0, second - 1)[0] == first
    assert cache.resume(0, first - 1) == (0, {})
    assert cache.resume(1, second) == (0, {})
    cache.drop_after(first)
    assert cache.resume(0, second)[0] == first


def test_gated_forward_returns_named_values_and_gradients():
    victim = victim_of("preact_resnet18:width=4")
    x = torch.randn(5, 3, 16, 16, requires_grad=True)
    gates = torch.rand(victim.units, requires_grad=True)
    name = victim.layers[3].mask_nodes[-1]
    logits, values = gated_forward(victim, x, gates, outputs=[name, head_input(victim)])
    assert values[name].shape[1] == victim.layers[3].units
    assert values[head_input(victim)].shape == (5, 32)
    torch.testing.assert_close(victim.model.linear(values[head_input(victim)]), logits)
    logits.square().sum().backward()
    assert (gates.grad != 0).float().mean() > 0.5 and x.grad.abs().sum() > 0


def test_gates_of_each_image():
    victim = victim_of("resnet18:width=4")
    x, gates = torch.randn(4, 3, 16, 16), torch.rand(4, victim.units)
    together = gated_forward(victim, x, gates)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], gated_forward(victim, x[i : i + 1], gates[i]), rtol=1e-4, atol=1e-5)


def test_gated_forward_refuses_wrong_gates_and_names():
    victim = victim_of("vgg11_bn:width=4")
    with pytest.raises(InputError, match="units"):
        gated_forward(victim, torch.randn(1, 3, 16, 16), torch.ones(victim.units + 1))
    with pytest.raises(InputError, match="no node named"):
        gated_forward(victim, torch.randn(1, 3, 16, 16), torch.ones(victim.units), outputs=["nowhere"])


def test_one_number_stands_for_both_directions():
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(F.conv2d(x, self.conv.weight, self.conv.bias, [2], [1]).relu().mean((2, 3)))

    victim = victim_from_module(Short(), Normalisation.parse("none"), (3, 9, 9))
    step = next(step for step in plan_of(victim).steps if isinstance(step, ConvStep))
    assert (step.stride, step.padding, step.dilation) == ((2, 2), (1, 1), (1, 1))
