"""Convolutions as products over the pixels of small maps, against conv2d in float64."""

import pytest
import torch
import torch.nn.functional as F

from onp.engine.settings import Tuning
from onp.engine.steps import Activation, ConvStep
from onp.engine.torch_backend.tap_gemm import bind_small_map, output_size, suits

RELU = Activation(torch.ops.aten.relu.default, ())


def conv(channels: int, units: int, kernel: tuple[int, int], padding=(1, 1), adds=False, stride=(1, 1)) -> ConvStep:
    weight, bias = torch.randn(units, channels, *kernel), torch.randn(units)
    names = ("x", "y") if adds else ("x",)
    return ConvStep("z", names, None, weight, bias, stride, padding, (1, 1), 1, RELU)


@pytest.mark.parametrize(
    ("kernel", "padding", "size"),
    [
        *(((3, 3), (1, 1), (4, 4)), ((3, 3), (1, 1), (7, 5)), ((3, 3), (1, 1), (1, 2)), ((2, 2), (0, 0), (6, 6))),
        *(((1, 3), (0, 1), (3, 5)), ((5, 5), (2, 2), (3, 4)), ((3, 3), (2, 2), (5, 5)), ((4, 4), (3, 3), (2, 2))),
    ],
)
@pytest.mark.parametrize("adds", [False, True])
def test_every_geometry_matches_conv2d(kernel, padding, size, adds):
    step = conv(7, 5, kernel, padding, adds)
    images = int(torch.randint(1, 6, ()))
    x = torch.randn(2 * images, *size, 7).permute(0, 3, 1, 2)[::2]  # strided, channels last
    keep = (torch.rand(5) > 0.4).float()
    weight, bias = step.weight.double() * keep[:, None, None, None], step.bias.double() * keep
    expected = F.conv2d(x.double(), weight, bias, 1, padding)
    added = (torch.randn(expected.shape),) if adds else ()
    expected = (expected + sum(added)).relu()
    assert output_size(step, (7, *size)) == tuple(expected.shape[2:])
    before = [value.clone() for value in (x, *added)]
    found = bind_small_map(step, keep, (7, *size))(x, *added)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip((x, *added), before, strict=True)), "inputs are not edited"


def test_layers_in_a_row_keep_their_layout():
    """The layout of one result is read by the next without a copy, and gives the same numbers."""
    first, second = conv(6, 8, (3, 3)), conv(8, 4, (3, 3))
    x = torch.randn(5, 6, 6, 6)
    middle = bind_small_map(first, None, (6, 6, 6))(x)
    assert middle.permute(2, 3, 0, 1).is_contiguous()
    found = bind_small_map(second, None, (8, 6, 6))(middle)
    again = bind_small_map(second, None, (8, 6, 6))(middle.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found, again)


def test_only_large_filters_on_small_maps_run_this_way():
    products = Tuning().tap_gemm_products
    wide = conv(512, 256, (3, 3))
    assert suits(wide, torch.float32, (512, 4, 4), products)
    assert not suits(wide, torch.bfloat16, (512, 4, 4), products)
    assert not suits(conv(512, 256, (3, 3), stride=(2, 2)), torch.float32, (512, 8, 8), products)
    assert not suits(wide, torch.float32, (512, 16, 16), products)
    assert not suits(conv(64, 64, (3, 3)), torch.float32, (64, 4, 4), products)
    assert not suits(conv(512, 512, (1, 1), padding=(0, 0)), torch.float32, (512, 4, 4), products)
