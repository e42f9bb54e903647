"""Convolutions by minimal filtering, against conv2d in float64; the error is bounded by the operations of the algorithm."""

import pytest
import torch
import torch.nn.functional as F
from helpers.winograd_error import UNIT, squared_error

from onp.engine.native import module
from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.winograd import Epilogue, bind_differentiable, bind_winograd, conv, filters_of, suits

pytestmark = pytest.mark.skipif(module("native")[0] is None, reason="the compiled module is not there")
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


def within(found: torch.Tensor, exact: torch.Tensor, squared: torch.Tensor) -> bool:
    """Whether the error of `found` is, root mean square, at most that of `squared` `[N, K, H, W]` (`squared_error`)."""
    assert found.shape == exact.shape and found.dtype == torch.float32 and exact.dtype == torch.float64
    return bool((found.double() - exact).square().mean() <= UNIT**2 * squared.mean())


def epilogue(y: torch.Tensor, squared: torch.Tensor, scale, shift, added) -> tuple[torch.Tensor, torch.Tensor]:
    """`scale * y + shift + added` in float64, and its squared error: that of y, and three roundings."""
    parts = [y * scale, torch.zeros_like(y) + shift, torch.zeros_like(y) + added]
    return sum(parts), squared * scale**2 + 3 * sum(part.abs() for part in parts).square()


def test_a_pruned_channel_is_zero_whatever_its_sum():
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 3, 3)
    weight[3] = 1e38
    keep, shift = torch.ones(16), torch.randn(16)
    keep[3] = shift[3] = 0
    found = conv(x, filters_of(weight), after=Epilogue(keep, shift))
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
def test_conv_is_as_exact_as_its_operations_allow(images, size, channels, padding, layout):
    inputs, outputs = channels
    x, weight = images_of(images, inputs, size, layout), torch.randn(outputs, inputs, 3, 3)
    scale, shift = torch.rand(outputs), torch.randn(outputs)
    exact = F.conv2d(x.double(), weight.double(), None, 1, padding)
    filtered, squared = squared_error(x, weight, padding)
    torch.testing.assert_close(filtered, exact, rtol=0, atol=1e-10)
    added = images_of(images, outputs, tuple(exact.shape[2:]), layout)
    before = [each.clone() for each in (x, added, scale, shift)]
    filters = filters_of(weight)
    by_channel = (slice(None), None, None)

    assert within(conv(x, filters, padding=padding), exact, squared)
    found = conv(x, filters, padding, Epilogue(scale, shift, added, relu=True))
    exact, squared = epilogue(exact, squared, scale.double()[by_channel], shift.double()[by_channel], added.double())
    assert within(found, exact.relu(), squared)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip((x, added, scale, shift), before, strict=True)), "inputs are not edited"


@pytest.mark.parametrize("channels", [16, 160])
def test_the_bound_on_the_error_fails_for_filters_of_fewer_bits(channels):
    """Filters with 18 bits of mantissa in place of 24, or one of the 24 products in half precision."""
    x, weight = torch.randn(4, channels, 8, 8), torch.randn(32, channels, 3, 3)
    exact, squared = squared_error(x, weight, 1)
    filters = filters_of(weight)
    assert within(conv(x, filters), exact, squared)
    coarse = (filters.view(torch.int32) & ~0x3F).view(torch.float32)
    half = filters.clone()
    half[5] = filters[5].half().float()
    for wrong in (coarse, half):
        assert not within(conv(x, wrong), exact, squared)


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
    found = conv(x, filters, after=Epilogue(relu=True))
    assert found[0, :, :2, :2].isnan().all() and not found[0, :, 6:, 6:].isnan().any() and not found[1].isnan().any()


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("activation", [None, RELU, RELU6])
@pytest.mark.parametrize("bias", [False, True])
def test_a_step_under_a_mask(adds, activation, bias):
    step = step_of(32, 16, adds=adds, activation=activation, bias=bias)
    x, keep = 3 * images_of(4, 32, (6, 7), "channels last"), (torch.rand(16) > 0.4).float()
    added = (3 * torch.randn(4, 16, 6, 7),) if adds else ()
    bound = bind_winograd(step, keep, filters_of(step.weight))

    gate = keep.double()[:, None, None]
    shift = step.bias.double()[:, None, None] * gate if bias else 0
    y, squared = epilogue(*squared_error(x, step.weight, 1), gate, shift, added[0].double() if adds else 0)
    assert within(bound(x, *added), y if activation is None else activation.target(y), squared)


@pytest.mark.parametrize(("padding", "size"), [(0, (9, 6)), (1, (5, 8)), (2, (4, 7))])
@pytest.mark.parametrize("activation", [None, RELU, RELU6])
def test_gradients_are_as_exact_as_their_operations_allow(padding, size, activation):
    step = step_of(48, 32, padding, adds=True, activation=activation)
    x = images_of(3, 48, size, "strided").requires_grad_()
    added = torch.randn(3, 32, *(each + 2 * padding - 2 for each in size))
    y = F.conv2d(x.double(), step.weight.double(), step.bias.double(), 1, padding).detach() + added
    # Rounding must not decide on which side of a kink of the activation a value lies.
    near_kink = (y.abs() < 1e-3) | ((y - 6).abs() < 1e-3)
    added, y = (each + 0.01 * near_kink for each in (added, y))
    added = added.requires_grad_()
    passed = torch.ones_like(y) if activation is None else ((y > 0) & ((y < 6) | (activation is RELU))).double()
    upstream = torch.randn(added.shape)

    grad_x, grad_added = torch.autograd.grad(bind_differentiable(step)(x, added), [x, added], upstream)
    assert torch.equal(grad_added, upstream * passed.float())
    turned = step.weight.flip(2, 3).transpose(0, 1)
    assert within(grad_x, *squared_error(upstream * passed, turned, 2 - padding))


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
        (lambda x, f: conv(x, f, after=Epilogue(torch.ones(3))), "for each of the 16 outputs"),
        (lambda x, f: conv(x, f, after=Epilogue(added=x)), "added is"),
        (lambda x, f: conv(x[..., :2], f, padding=0), "have no output"),
        (lambda x, f: filters_of(torch.randn(16, 16, 5, 5)), "are wanted"),
        (lambda x, f: filters_of(torch.randn(16, 20, 3, 3)), "multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 32, 5, 5), filters_of(torch.randn(16, 32, 3, 3)))
