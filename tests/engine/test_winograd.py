"""Convolutions by minimal filtering, against conv2d in float64; plain torch in float32 is what their error is held against."""

import pytest
import torch
import torch.nn.functional as F

from onp.engine import native as backend
from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.winograd import bind_differentiable, bind_winograd, conv, filters_of, suits

pytestmark = pytest.mark.skipif(backend.module("native")[0] is None, reason="the compiled module is not there")
RELU = Activation(torch.ops.aten.relu.default, ())
RELU6 = Activation(torch.ops.aten.relu6.default, ())


def step_of(inputs: int, outputs: int, padding=1, adds=False, activation=RELU, bias=True) -> ConvStep:
    weight = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
    names = ("x", "y") if adds else ("x",)
    shift = torch.randn(outputs) if bias else None
    return ConvStep("z", names, None, weight, shift, (1, 1), (padding, padding), (1, 1), 1, activation)


def images_of(count: int, channels: int, size: tuple[int, int], layout: str) -> torch.Tensor:
    """Laid out as a step may find them: channels-last, channels first, or every second image and column of something larger."""
    if layout == "strided":
        return torch.randn(2 * count, size[0], 2 * size[1], channels).permute(0, 3, 1, 2)[::2, :, :, ::2]
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    return torch.randn(count, channels, *size).contiguous(memory_format=memory_format)


def as_good(found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """`found` is off by at most twice what plain torch is: root mean square, and an ulp of slack for small sums."""
    assert found.shape == exact.shape and found.dtype == torch.float32
    off, usual = ((each.double() - exact).square().mean().sqrt() for each in (found, plain))
    assert off <= 2 * usual + 1e-7 * exact.square().mean().sqrt()


def test_a_pruned_channel_is_zero_whatever_its_sum():
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 3, 3)
    weight[3] = 1e38
    keep, shift = torch.ones(16), torch.randn(16)
    keep[3] = shift[3] = 0
    found = conv(x, filters_of(weight), keep, shift)
    assert found.isfinite().all() and not found[:, 3].any()


def test_another_default_dtype_changes_nothing():
    x, filters = torch.randn(2, 16, 4, 4), filters_of(torch.randn(16, 16, 3, 3))
    expected = conv(x, filters)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(conv(x, filters), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("layout", ["channels last", "channels first", "strided"])
@pytest.mark.parametrize(
    ("images", "size", "channels", "padding"),
    [
        *((3, (8, 8), (32, 48), 1), (1, (7, 5), (32, 16), 1), (5, (9, 30), (48, 16), 0), (2, (6, 11), (16, 32), 2)),
        *((30, (4, 4), (64, 64), 1), (2, (3, 3), (32, 64), 0), (4, (2, 17), (160, 144), 1)),
    ],
)
def test_conv_is_as_exact_as_torch(images, size, channels, padding, layout):
    inputs, outputs = channels
    x, weight = images_of(images, inputs, size, layout), torch.randn(outputs, inputs, 3, 3)
    scale, shift = torch.rand(outputs), torch.randn(outputs)
    exact = F.conv2d(x.double(), weight.double(), None, 1, padding)
    added = images_of(images, outputs, tuple(exact.shape[2:]), layout)
    before = [each.clone() for each in (x, added, scale, shift)]
    filters = filters_of(weight)
    by_channel = (slice(None), None, None)

    plain = F.conv2d(x, weight, None, 1, padding)
    as_good(conv(x, filters, padding=padding), plain, exact)
    found = conv(x, filters, scale, shift, added, padding, relu=True)
    exact = (exact * scale[by_channel] + shift[by_channel] + added).relu()
    as_good(found, (plain * scale[by_channel] + shift[by_channel] + added).relu(), exact)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip((x, added, scale, shift), before, strict=True)), "inputs are not edited"


def test_an_image_gives_the_same_bits_beside_others_and_on_any_number_of_threads():
    x, filters = torch.randn(37, 32, 10, 9), filters_of(torch.randn(64, 32, 3, 3))
    together = conv(x, filters)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(conv(x, filters), together)
            assert torch.equal(torch.cat([conv(part, filters) for part in x.split(5)]), together)
    finally:
        torch.set_num_threads(threads)


def test_nothing_in_nothing_out_and_nan_stays_nan():
    filters = filters_of(torch.randn(16, 16, 3, 3))
    assert conv(torch.randn(0, 16, 5, 5), filters).shape == (0, 16, 5, 5)
    x = torch.randn(2, 16, 12, 12)
    x[0, 3, 0, 0] = torch.nan
    found = conv(x, filters, relu=True)
    assert found[0, :, :2, :2].isnan().all() and not found[0, :, 6:, 6:].isnan().any() and not found[1].isnan().any()


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("activation", [None, RELU, RELU6])
@pytest.mark.parametrize("bias", [False, True])
def test_a_step_under_a_mask(adds, activation, bias):
    step = step_of(32, 16, adds=adds, activation=activation, bias=bias)
    x, keep = 3 * images_of(4, 32, (6, 7), "channels last"), (torch.rand(16) > 0.4).float()
    added = (3 * torch.randn(4, 16, 6, 7),) if adds else ()
    bound = bind_winograd(step, keep, filters_of(step.weight))

    def expected(dtype: torch.dtype) -> torch.Tensor:
        weight, shift = step.weight.to(dtype) * keep[:, None, None, None], (step.bias * keep).to(dtype) if bias else None
        y = F.conv2d(x.to(dtype), weight, shift, 1, 1) + sum(each.to(dtype) for each in added)
        return y if activation is None else activation.target(y)

    as_good(bound(x, *added), expected(torch.float32), expected(torch.float64))


@pytest.mark.parametrize(("padding", "size"), [(0, (9, 6)), (1, (5, 8)), (2, (4, 7))])
@pytest.mark.parametrize("activation", [None, RELU, RELU6])
def test_gradients_are_as_exact_as_those_of_torch(padding, size, activation):
    step = step_of(48, 32, padding, adds=True, activation=activation)
    bound = bind_differentiable(step)
    x = images_of(3, 48, size, "strided")
    added = torch.randn(3, 32, *(each + 2 * padding - 2 for each in size))
    weights = torch.randn_like(added)

    def gradients(dtype: torch.dtype, run) -> list[torch.Tensor]:
        values = [each.to(dtype).detach().requires_grad_() for each in (x, added)]
        return list(torch.autograd.grad((run(*values) * weights.to(dtype)).sum(), values))

    def plain(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, step.weight.to(x.dtype), step.bias.to(x.dtype), 1, padding) + added
        return y if activation is None else activation.target(y)

    exact, usual, found = (
        gradients(dtype, run) for dtype, run in ((torch.float64, plain), (torch.float32, plain), (torch.float32, bound))
    )
    for each in zip(found, usual, exact, strict=True):
        as_good(*each)


def test_only_what_is_wanted_is_differentiated():
    bound = bind_differentiable(step_of(16, 16, adds=True))
    x, added = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4, requires_grad=True)
    bound(x, added).sum().backward()
    assert x.grad is None and added.grad is not None
    y = bound(x.requires_grad_(), added.detach())
    (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_suits_is_what_saves_products():
    shape = (32, 8, 8)
    assert suits(step_of(32, 64), torch.float32, shape)
    assert not suits(step_of(32, 64), torch.bfloat16, shape)
    assert not suits(step_of(24, 64), torch.float32, (24, 8, 8)) and not suits(step_of(32, 40), torch.float32, shape)
    assert suits(step_of(32, 64), torch.float32, (32, 4, 4))
    # Two by two pixels take a tile of two by four, and see four taps of nine each.
    assert not suits(step_of(32, 64), torch.float32, (32, 2, 2)) and not suits(step_of(32, 64), torch.float32, (32, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, f: conv(x[:, :16], f), "has 16 channels, and the filters are for 32"),
        (lambda x, f: conv(x, f, torch.ones(3)), "for each of the 16 outputs"),
        (lambda x, f: conv(x, f, added=x), "added is"),
        (lambda x, f: conv(x[..., :2], f, padding=0), "have no output"),
        (lambda x, f: filters_of(torch.randn(16, 16, 5, 5)), "are wanted"),
        (lambda x, f: filters_of(torch.randn(16, 20, 3, 3)), "multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 32, 5, 5), filters_of(torch.randn(16, 32, 3, 3)))
