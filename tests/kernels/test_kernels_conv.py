"""The conv kernels under Triton's interpreter: against their contracts in float64, at most twice as wrong as torch itself."""

import os

import pytest
import torch
from torch import Tensor

from onp_kernels import reference_conv as reference

pytest.importorskip("triton", reason="the extra `triton` is not installed")

from onp_kernels.channels import Channels, kept_channels, pack_filters, scale_act
from onp_kernels.masked_conv import Norm, masked_conv, masked_conv_norm
from onp_kernels.tiles import TILES, Tile, choose_tile

# NumPy's warning about how the interpreter turns a loop's bound into a number.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

# The interpreter does not multiply bfloat16; a GPU is compared in it too.
DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0" else "cpu"
DEVICES = [("cpu", torch.float32), ("cpu", torch.float16)]
if DEVICE == "cuda":
    DEVICES = [("cuda", torch.float32), ("cuda", torch.float16), ("cuda", torch.bfloat16)]
SMALL = Tile(32, 64, 16, 4, 2)  # several tiles even of small problems
LOCAL = SMALL._replace(local=True)


@pytest.fixture(params=DEVICES, ids=lambda value: f"{value[0]}-{value[1]}".replace("torch.", ""))
def draw(request, rng: torch.Generator):
    """Random tensors on the device under test, in its precision if no other is named."""
    device, dtype = request.param

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=rng).to(device, dtype)

    return tensor


def exact(arguments: dict) -> dict:
    """`arguments` in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def assert_no_worse_than_torch(ours: Tensor, torchs: Tensor, right: Tensor) -> None:
    """The rule of flash-attention's tests, with one rounding of the result allowed beside it."""
    assert ours.shape == right.shape and ours.isfinite().all()
    if ours.numel():
        rounding = torch.finfo(ours.dtype).eps * right.abs().max()
        assert (ours - right).abs().max() <= 2 * (torchs - right).abs().max() + rounding


GEOMETRIES = {
    "3x3": ((5, 6, 7, 9), (11, 3, 3), {"padding": (1, 1)}),
    "3x3-stride2": ((3, 9, 4, 20), (70, 3, 3), {"padding": (1, 1), "stride": (2, 2)}),
    "1x1": ((3, 5, 3, 33), (17, 1, 1), {}),
    "1x1-stride2": ((2, 7, 6, 16), (64, 1, 1), {"stride": (2, 2)}),
    "7x7": ((2, 9, 8, 3), (8, 7, 7), {"padding": (3, 3), "stride": (2, 2)}),
    "one-pixel": ((33, 1, 1, 70), (5, 3, 3), {"padding": (1, 1)}),
    "many-images": ((31, 4, 3, 7), (6, 3, 3), {"padding": (1, 1)}),
    "many-images-even": ((30, 5, 3, 16), (64, 3, 2), {"padding": (3, 2), "stride": (2, 1), "dilation": (2, 3)}),
    "wide": ((2, 2, 35, 3), (4, 1, 33), {"padding": (0, 16)}),
    "dilated-oblong": ((2, 8, 5, 4), (6, 2, 3), {"padding": (3, 2), "stride": (1, 2), "dilation": (3, 2)}),
    "no-images": ((0, 4, 4, 8), (8, 3, 3), {"padding": (1, 1)}),
}


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        *((name, None) for name in GEOMETRIES),
        *((name, SMALL) for name in ("3x3", "1x1", "one-pixel", "many-images", "many-images-even")),
        *((name, LOCAL) for name in ("3x3", "3x3-stride2", "7x7", "one-pixel")),
    ],
)
def test_masked_conv(draw, rng, name, tile):
    """Every geometry with two masks; what is shared between masks and what follows the sum changes from draw to draw."""
    (N, H, W, C), (K, R, S), geometry = GEOMETRIES[name]
    B = 2
    each = torch.randint(1, B + 1, (3,), generator=rng).tolist()
    x = draw(each[0], N, H + 1, W, C + 3)[:, :, 1:, :, 2 : C + 2]  # a slice of a larger buffer
    weight = draw(each[1], K, R, S, C) / (R * S * C) ** 0.5
    keep = (torch.rand(B, K, generator=rng) > 0.3).to(x.device)
    arguments = {"x": x, "weight": weight, "bias": draw(1, K, dtype=torch.float32), "keep": keep, **geometry}
    shape = reference.masked_conv(**exact(arguments)).shape
    if torch.rand((), generator=rng) > 0.5:
        arguments["residual"] = draw(each[2], *shape[1:])
    choices = ({}, *({"activation": name} for name in ("clamp", "silu", "hardswish")), {"activation": "clamp", "high": 0.5})
    arguments |= choices[int(torch.randint(len(choices), (), generator=rng))]
    right = reference.masked_conv(**exact(arguments))
    ours = masked_conv(**arguments, precision="ieee", tile=tile)
    assert ours.dtype == x.dtype and ours.is_contiguous()
    assert_no_worse_than_torch(ours, reference.masked_conv(**arguments), right)


@pytest.mark.parametrize("tile", [None, SMALL, LOCAL])
@pytest.mark.parametrize("only", [False, True])
def test_a_norm_behind_the_sum_is_what_a_kernel_of_its_own_gives(draw, rng, tile, only):
    """Up to rounding, so that a result does not depend on which steps run together; pruned channels count as zero there."""
    x, weight = draw(2, 3, 5, 4, 20), draw(1, 70, 3, 3, 20) / 13
    options = {"keep": (torch.rand(2, 70, generator=rng) > 0.3).to(x.device), "residual": draw(1, 3, 5, 4, 70)}
    options |= {"padding": (1, 1), "precision": "ieee", "tile": tile}
    bias, scale, shift = draw(1, 70, dtype=torch.float32), draw(2, 70, dtype=torch.float32), draw(1, 70, dtype=torch.float32)
    scale[0, 3] = 0
    y = masked_conv(x, weight, bias, **options)
    wanted = scale_act(y, scale=scale, shift=shift, activation="clamp")
    ours, normed = masked_conv_norm(x, weight, bias, Norm(scale, shift, "clamp", only=only), **options)
    assert (ours is None) if only else torch.equal(ours, y)
    torch.testing.assert_close(normed, wanted, rtol=2 * torch.finfo(y.dtype).eps, atol=1e-6)


def packed_case(draw, rng: torch.Generator, K: int, C: int) -> tuple[Tensor, Tensor, Tensor, Channels, Channels]:
    """Activations, filters and bias, and which rows and columns three masks keep: few, all or none, and of columns none."""
    x, weight, bias = draw(1, 3, 4, 5, C), draw(K, 3, 3, C) / C, draw(K, dtype=torch.float32)
    rows, columns = (torch.rand(3, size, generator=rng) > 0.6 for size in (K, C))
    rows[1], columns[1], columns[2] = bool(torch.rand((), generator=rng) > 0.5), True, False
    return x, weight, bias, kept_channels(rows.to(x.device)), kept_channels(columns.to(x.device))


@pytest.mark.parametrize(("K", "C"), [(70, 66), (8, 5), (64, 128)])
def test_packed_channels_give_the_pruned_conv(draw, rng, K, C):
    """Pack, conv: what a mask keeps is what a conv with the other channels zero computes, and zeros lie behind."""
    x, weight, bias, rows, columns = packed_case(draw, rng, K, C)
    poisoned = torch.full((3, *x.shape[1:]), float("nan"), dtype=x.dtype, device=x.device)
    packed, packed_bias = pack_filters(weight, bias, rows, columns)
    for b in range(3):
        behind = min(-(-int(columns.count[b]) // 64) * 64, C)
        column = columns.index[b, : columns.count[b]].long()
        poisoned[b, ..., :behind] = 0
        poisoned[b, ..., : len(column)] = x[0, ..., column]
        count = int(rows.count[b])
        kept = reference.pack_filters(weight, bias, rows, columns)
        assert torch.equal(packed[b, :count, ..., :behind], kept[0][b, :count, ..., :behind])
        assert torch.equal(packed_bias[b, :count], kept[1][b, :count])
        packed[b, count:] = float("nan")
        packed[b, ..., behind:] = float("nan")
    arguments = {"inputs": columns.count, "outputs": rows.count, "padding": (1, 1), "activation": "silu"}
    ours = masked_conv(poisoned, packed, packed_bias, **arguments, precision="ieee")
    for b in range(3):
        row = rows.index[b, : rows.count[b]].long()
        column = torch.zeros(C, dtype=torch.bool, device=x.device)
        column[columns.index[b, : columns.count[b]].long()] = True
        dense = {"x": torch.where(column, x, 0), "weight": weight[None], "bias": bias[None]}
        dense |= {"padding": (1, 1), "activation": "silu"}
        right, torchs = reference.masked_conv(**exact(dense))[0], reference.masked_conv(**dense)[0]
        assert_no_worse_than_torch(ours[b, ..., : len(row)], torchs[..., row], right[..., row])
        assert not ours[b, ..., len(row) : min(-(-len(row) // 64) * 64, K)].any()


def test_kept_channels(rng):
    for shape in ((3, 100), (2, 1), (1, 64), (2, 0), (0, 5)):
        keep = (torch.rand(*shape, generator=rng) > 0.5).to(DEVICE)
        index, count = kept_channels(keep.t().contiguous().t())
        assert index.dtype == count.dtype == torch.int32 and torch.equal(count, keep.sum(1, dtype=torch.int32))
        for b in range(shape[0]):
            assert torch.equal(index[b, : count[b]].long(), keep[b].nonzero()[:, 0])


@pytest.mark.parametrize("shape", [(1, 3, 4, 5, 37), (2, 5, 130), (2, 0, 8), (1, 1, 1)])
@pytest.mark.parametrize("activation", [{}, {"activation": "clamp", "low": -1.0, "high": 1.0}, {"activation": "hardswish"}])
def test_scale_act(draw, shape, activation):
    C = shape[-1]
    arguments = {"x": draw(*shape), "scale": draw(2, C, dtype=torch.float32), "shift": draw(1, C, dtype=torch.float32)}
    arguments["residual"] = draw(*shape).transpose(-1, -2).contiguous().transpose(-1, -2)
    ours, right = scale_act(**arguments, **activation), reference.scale_act(**exact(arguments), **activation)
    assert_no_worse_than_torch(ours, reference.scale_act(**arguments, **activation), right)


def test_a_pruned_channel_is_zero_whatever_it_holds():
    x = torch.tensor([[[1.0, float("inf"), float("nan")]]], device=DEVICE)
    keep = torch.tensor([[True, False, False]], device=DEVICE)
    assert scale_act(x, scale=keep).tolist() == [[[1.0, 0.0, 0.0]]]


def test_shapes_that_do_not_fit():
    x, weight, bias = torch.ones(1, 2, 4, 4, 3), torch.ones(1, 5, 1, 1, 3), torch.ones(1, 5)
    with pytest.raises(ValueError, match="do not fit"):
        masked_conv(x, torch.ones(1, 5, 1, 1, 4), bias)
    with pytest.raises(ValueError, match="do not fit"):
        masked_conv(x, weight.expand(3, 5, 1, 1, 3), bias.expand(2, 5))
    with pytest.raises(ValueError, match="residual"):
        masked_conv(x, weight, bias, residual=torch.ones(1, 2, 4, 4, 4))
    with pytest.raises(ValueError, match="too many"):
        masked_conv(torch.empty(1, 1, 1, 1, 3, device="meta").expand(1, 2**30, 1, 1, 3).contiguous(), weight, bias)


def test_every_tile_keeps_the_promise_of_packed_channels():
    """64 zeros behind the kept channels suffice only if a tile stores at least, and reduces over at most, 64 channels."""
    for (arch, size), tiles in TILES.items():
        assert all(tile.bn >= 64 >= tile.bc for tile in tiles), (arch, size)
    for filters in (1, 24, 64, 65, 500):
        tile = choose_tile(torch.device("cpu"), torch.float16, 1000, filters, 3, 9, 1)
        assert tile.bc == 16 and (tile.bn >= 64 or tile.bn >= filters)
