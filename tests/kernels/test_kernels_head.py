"""Means over positions, and logits that become counts, under Triton's interpreter, against their contracts."""

import os

import pytest
import torch
from torch import Tensor

from onp_kernels import reference_conv as reference

pytest.importorskip("triton", reason="the extra `triton` is not installed")

from onp_kernels.head import head, tap_means

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

# The interpreter does not multiply bfloat16; a GPU is compared in it too.
DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0" else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 3, 4, 4, 70), {"size": (3, 3), "padding": (1, 1)}),
        ((1, 5, 7, 5, 8), {"size": (2, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)}),
        ((2, 3, 9, 9, 3), {}),
        ((1, 0, 4, 4, 8), {}),
    ],
)
def test_tap_means(rng, shape, arguments, dtype):
    wide = torch.randn(*shape[:-1], shape[-1] + 2, generator=rng).to(DEVICE, dtype)
    x = wide[..., 1:-1]
    ours, right = tap_means(x, **arguments), reference.tap_means(x.double(), **arguments)
    assert ours.shape == right.shape
    if ours.numel():
        # Sums of float16 are float32 in the kernel, unlike torch's: one rounding of the result is all that is allowed.
        assert (ours - right).abs().max() <= 2 * torch.finfo(dtype).eps * right.abs().max() + 1e-7


def test_the_mean_of_a_conv_is_the_conv_of_means(rng):
    x, weight = torch.randn(1, 3, 6, 5, 4, generator=rng).double(), torch.randn(1, 7, 3, 3, 4, generator=rng).double()
    bias, geometry = torch.randn(1, 7, generator=rng).double(), {"stride": (2, 1), "padding": (1, 1)}
    whole = reference.masked_conv(x, weight, bias, **geometry).mean((2, 3), keepdim=True)
    torch.testing.assert_close(reference.masked_conv(reference.tap_means(x, (3, 3), **geometry), weight, bias), whole)


def case(rng: torch.Generator, B: int, N: int, P: int, C: int, classes: int, columns: int) -> dict[str, Tensor]:
    """Features, a layer whose logits differ clearly, and images of which some count nowhere."""
    return {
        "x": torch.randn(B, N, P, C, generator=rng).to(DEVICE),
        "weight": torch.randn(classes, C, generator=rng).to(DEVICE),
        "bias": torch.randn(classes, generator=rng).to(DEVICE),
        "expected": torch.randint(classes, (N,), generator=rng, dtype=torch.int32).to(DEVICE),
        "column": torch.randint(-1, columns, (N,), generator=rng, dtype=torch.int32).to(DEVICE),
        "base": torch.randn(N // 3, classes, generator=rng).log_softmax(1).to(DEVICE),
    }


@pytest.mark.parametrize(
    ("B", "N", "P", "C", "classes", "columns", "masks"),
    [(2, 37, 3, 40, 10, 3, 2), (1, 5, 1, 8, 300, 1, 3), (3, 16, 4, 33, 2, 2, 3), (2, 0, 1, 4, 4, 2, 2)],
)
def test_head(rng, B, N, P, C, classes, columns, masks):
    arguments = case(rng, B, N, P, C, classes, columns)
    ours, right = (torch.full((masks, 3, columns), 5, dtype=torch.int64, device=DEVICE) for _ in range(2))
    head(**arguments, sums=ours)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in arguments.items()}
    reference.head(**exact, sums=right)
    assert torch.equal(ours[:, 0], right[:, 0])
    torch.testing.assert_close(ours[:, 1:] / reference.PROBABILITY, right[:, 1:] / reference.PROBABILITY, rtol=0, atol=1e-5)
    again = torch.full_like(ours, 5)
    head(**arguments, sums=again)
    assert torch.equal(again, ours)


def test_logits_without_a_layer_and_ties(rng):
    """The first of equal logits wins, as in torch on the CPU; half precision logits count as they are."""
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 4.0]], dtype=torch.float16, device=DEVICE)
    expected = torch.tensor([1, 1, 2], dtype=torch.int32, device=DEVICE)
    sums = torch.zeros(1, 3, 1, dtype=torch.int64, device=DEVICE)
    nothing = torch.empty(0, 3, device=DEVICE)
    head(logits[None, :, None], None, None, expected, torch.zeros_like(expected), nothing, sums)
    assert sums[0, 0, 0] == 2
    probability = logits.double().softmax(1).gather(1, expected.long()[:, None]).sum()
    assert float(sums[0, 1, 0]) / reference.PROBABILITY == pytest.approx(float(probability), abs=1e-6)
    with pytest.raises(ValueError, match="positions"):
        head(torch.ones(1, 3, 2, 3, device=DEVICE), None, None, expected, expected, nothing, sums)
