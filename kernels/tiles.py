"""Which tile a conv runs with: a table by architecture and shape, and the command that measures it.

    python -m onp_kernels.tiles --tune

times every candidate of this GPU's table on the convs of PreActResNet18 and ResNet-50, checks each against torch first,
prints TFLOP/s beside torch's, and writes the fastest to `tiles.json` beside this file, where `choose_tile` looks first. The
table is reasoned, not measured: wide tiles for long reductions, as many stages as shared memory takes (163 KiB a program on
sm_80, 227 on sm_90 and sm_100), and no tile that spills registers under relu (128 x 256 does, in the epilogue with a residual;
256 x 128 spills 24 bytes under silu, once a tile).
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).with_name("tiles.json")


class Tile(NamedTuple):
    """`bm` positions x `bn` filters a program, `bc` input channels a step, `warps` warps, `stages` steps in flight.

    `bn` is at least 64 and `bc` at most 64, so that the zeros behind packed channels reach as far as a conv reads.
    """

    bm: int
    bn: int
    bc: int
    warps: int
    stages: int


# By architecture and bytes of an element; the first is the one for large problems.
TILES: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("sm_80", 2): (Tile(128, 128, 32, 8, 4), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 4)),
    ("sm_80", 4): (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 8, 4)),
    ("sm_90", 2): (Tile(256, 128, 64, 8, 4), Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4), Tile(64, 64, 64, 4, 5)),
    ("sm_90", 4): (Tile(128, 64, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
    ("sm_100", 2): (Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4)),
    ("sm_100", 4): (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 4)),
    ("interpreter", 2): (Tile(4096, 64, 64, 4, 1),),
    ("interpreter", 4): (Tile(4096, 64, 64, 4, 1),),
}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


def choose_tile(device: torch.device, dtype: torch.dtype, positions: int, filters: int, channels: int, masks: int) -> Tile:
    """The tile for `masks` convs of `positions` outputs x `filters` over `channels`: the measured one where there is one, else
    the first of the table that is no wider than the filters and leaves no multiprocessor without a program."""
    arch, processors = _device(device)
    size = dtype.itemsize
    tuned = _tuned().get(arch, {}).get(_key(size, positions * masks, filters, channels))
    if tuned is not None:
        return _narrowed(tuned, filters, channels)
    candidates = [_narrowed(tile, filters, channels) for tile in TILES[arch, size]]
    for tile in candidates:
        programs = -(-positions // tile.bm) * -(-filters // tile.bn) * masks
        if tile.bn < 2 * filters and programs >= processors:
            return tile
    return candidates[-1]


def elementwise_rows(device: torch.device) -> int:
    """Rows of up to 128 channels that a program of an elementwise kernel takes; the interpreter pays by the program."""
    return 32 if device.type == "cuda" else 1024


def _narrowed(tile: Tile, filters: int, channels: int) -> Tile:
    """No wider than the power of two that holds `filters` and `channels`; a matrix unit takes 16 at least."""
    return tile._replace(bn=min(tile.bn, _power_of_two(filters)), bc=min(tile.bc, _power_of_two(channels)))


def _power_of_two(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())


def _key(size: int, positions: int, filters: int, channels: int) -> str:
    return f"{8 * size} bit, 2^{(positions - 1).bit_length()} positions, {filters} filters, {channels} channels"


@functools.cache
def _device(device: torch.device) -> tuple[str, int]:
    """Architecture whose table is used, and multiprocessors."""
    if device.type != "cuda":
        return "interpreter", 1
    major = torch.cuda.get_device_capability(device)[0]
    arch = "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"
    return arch, torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _tuned() -> dict[str, dict[str, Tile]]:
    if not TUNED.exists():
        return {}
    return {arch: {key: Tile(*tile) for key, tile in found.items()} for arch, found in json.loads(TUNED.read_text()).items()}


# positions of a side, channels, filters, side of the filter, stride: the convs of PreActResNet18 (width 64, 32x32) and those of
# ResNet-50 (224x224) that take most of its time.
SHAPES = (
    *((32, 64, 64, 3, 1), (32, 64, 128, 3, 2), (16, 128, 128, 3, 1), (16, 128, 256, 3, 2), (8, 256, 256, 3, 1)),
    *((8, 256, 512, 3, 2), (4, 512, 512, 3, 1)),
    *((56, 64, 256, 1, 1), (56, 256, 64, 1, 1), (28, 512, 128, 1, 1), (14, 1024, 256, 1, 1), (7, 512, 512, 3, 1)),
)


def tune(out: Path, images: int, masks: int) -> None:
    """Time the candidates on this GPU in bfloat16, print them beside torch, and write the fastest of each shape to `out`."""
    import torch.nn.functional as F
    from triton.testing import do_bench

    from onp_kernels.masked_conv import masked_conv

    device = torch.device("cuda", torch.cuda.current_device())
    arch, _ = _device(device)
    best: dict[str, Tile] = {}
    print(f"{torch.cuda.get_device_name(device)}, {images} images, {masks} masks; TFLOP/s, median of do_bench")
    for side, channels, filters, taps, stride in SHAPES:
        count = images if side <= 32 else images // 8
        x = torch.randn(masks, count, side, side, channels, device=device, dtype=torch.bfloat16)
        weight = torch.randn(masks, filters, taps, taps, channels, device=device, dtype=torch.bfloat16) / (taps * channels**0.5)
        bias = torch.zeros(1, filters, device=device)
        geometry = {"stride": (stride, stride), "padding": (taps // 2, taps // 2)}
        nchw = x[0].permute(0, 3, 1, 2)
        expected = F.conv2d(nchw, weight[0].permute(0, 3, 1, 2), **geometry).permute(0, 2, 3, 1)
        flops = 2 * expected.numel() * taps * taps * channels
        peer = flops / do_bench(lambda: F.conv2d(nchw, weight[0].permute(0, 3, 1, 2), **geometry), return_mode="median") / 1e9  # noqa: B023
        rates: dict[Tile, float] = {}
        for tile in dict.fromkeys(_narrowed(tile, filters, channels) for tile in TILES[arch, 2]):
            y = masked_conv(x, weight, bias, **geometry, tile=tile)
            torch.testing.assert_close(y[0], expected, rtol=2e-2, atol=2e-2)
            seconds = do_bench(lambda: masked_conv(x, weight, bias, **geometry, tile=tile), return_mode="median") / 1e3  # noqa: B023
            rates[tile] = masks * flops / seconds / 1e12
        fastest = max(rates, key=rates.__getitem__)
        best[_key(2, expected.numel() // filters * masks, filters, channels)] = fastest
        shown = ", ".join(f"{tuple(tile)} {rate:.0f}" for tile, rate in rates.items())
        print(f"{side}x{side} {channels}->{filters} {taps}x{taps}/{stride}: torch {peer:.0f}; {shown}", flush=True)
    found = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(found | {arch: best}, indent=1) + "\n")
    print(f"written to {out}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m onp_kernels.tiles", description="Measure the tile table on this GPU.")
    parser.add_argument("--tune", action="store_true", required=True, help="time every candidate tile, write the fastest")
    parser.add_argument("--out", type=Path, default=TUNED, help="table to write (default: %(default)s, which the kernels read)")
    parser.add_argument("--images", type=int, default=1000, help="images of 32x32 (default: %(default)s)")
    parser.add_argument("--masks", type=int, default=8, help="masks in one launch (default: %(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU here, so there is nothing to measure", file=sys.stderr)
        return 2
    tune(args.out, args.images, args.masks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
