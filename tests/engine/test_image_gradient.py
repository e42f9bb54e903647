"""The gradient of a first convolution to the images, against float64, for odd sizes, layouts, and any number of threads."""

import pytest
import torch
import torch.nn.functional as F

from onp.engine.native import module, native
from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.image_gradient import bind_first_conv, image_gradient, suits

pytestmark = pytest.mark.skipif(module("native")[0] is None, reason="the compiled module is not there")
RELU = Activation(torch.ops.aten.relu.default, ())
CASES = [
    *((3, 1, 16, (28, 28), (3, 3), 1, 1), (2, 3, 64, (9, 13), (3, 3), 1, 1), (1, 4, 32, (7, 5), (5, 3), 1, 2)),
    *((2, 3, 48, (23, 18), (7, 7), 2, 3), (2, 2, 16, (12, 17), (4, 4), 4, 0), (1, 1, 16, (1, 1), (1, 1), 1, 0)),
    *((2, 3, 16, (11, 6), (3, 3), 3, 2), (1, 3, 160, (4, 40), (3, 3), 2, 1)),
]


def step_of(weight, bias, stride=1, padding=1, groups=1, dilation=1, activation=RELU) -> ConvStep:
    return ConvStep("y", ("x",), None, weight, bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups, activation)


def exact(weight, grad, size, stride, padding):
    x = torch.zeros(len(grad), weight.shape[1], *size, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight.double(), None, stride, padding)
    return torch.autograd.grad(y, x, grad.double())[0]


@pytest.mark.parametrize(("images", "channels", "outputs", "size", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("layout", ["channels last", "channels first", "strided"])
def test_it_is_that_of_conv2d(images, channels, outputs, size, kernel, stride, padding, layout):
    weight = torch.randn(outputs, channels, *kernel)
    shape = F.conv2d(torch.zeros(images, channels, *size), weight, None, stride, padding).shape
    grad = torch.randn(shape)
    if layout == "channels last":
        grad = grad.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        grad = torch.randn(2 * shape[0], *shape[1:3], 2 * shape[3])[::2, :, :, ::2]
    before = grad.clone()
    found = image_gradient(grad, weight, size, stride, padding)
    wanted = exact(weight, grad, size, stride, padding)
    # Each term is rounded once, and so is each of the sums on the way.
    bound = exact(weight.abs(), grad.abs(), size, stride, padding) * weight[:, 0].numel() * 2**-23
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert ((found - wanted).abs() <= bound + 1e-30).all() and torch.equal(grad, before)


def test_a_step_gives_what_conv2d_gives_and_its_gradient():
    weight, bias = torch.randn(16, 3, 3, 3), torch.randn(16)
    x = torch.randn(5, 3, 10, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    step = step_of(weight, bias)
    assert suits(step, torch.float32)
    found = bind_first_conv(step)(x)
    wanted = F.conv2d(x, weight, bias, 1, 1).relu()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    given = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, x, given)[0], torch.autograd.grad(wanted, x, given)[0])
    added = torch.randn_like(found)
    plain = bind_first_conv(step_of(weight, bias, activation=None))(x, added)
    torch.testing.assert_close(plain, F.conv2d(x, weight, bias, 1, 1) + added, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "step",
    [
        step_of(torch.randn(16, 5, 3, 3), None),
        step_of(torch.randn(24, 3, 3, 3), None),
        step_of(torch.randn(16, 1, 3, 3), None, groups=3),
        step_of(torch.randn(16, 3, 3, 3), None, dilation=2),
    ],
    ids=["many channels", "filters", "groups", "dilation"],
)
def test_what_it_is_not_for(step):
    assert not suits(step, torch.float32) and not suits(step_of(torch.randn(16, 3, 3, 3), None), torch.bfloat16)


def test_the_same_bits_on_any_number_of_threads_and_nothing_for_nothing():
    weight, grad = torch.randn(32, 3, 3, 3), torch.randn(37, 32, 11, 10)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(image_gradient(grad, weight, (11, 10), 1, 1))
            found.append(torch.cat([image_gradient(part, weight, (11, 10), 1, 1) for part in grad.split(5)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)
    assert image_gradient(grad[:0], weight, (11, 10), 1, 1).shape == (0, 3, 11, 10)


def test_sizes_that_do_not_fit_are_refused():
    weight, grad = torch.randn(16, 3, 3, 3), torch.randn(2, 16, 8, 8)
    with pytest.raises(ValueError, match="the filters have 16"):
        image_gradient(torch.randn(2, 32, 8, 8), weight, (8, 8), 1, 1)
    with pytest.raises(ValueError, match="not of the size"):
        image_gradient(grad, weight, (9, 8), 1, 1)
    with pytest.raises(ValueError, match="1 to 4 channels"):
        native().image_gradient(0, 0, 0, 1, 3, 3, 5, 3, 3, 16, 3, 3, 1, 1, 1)
