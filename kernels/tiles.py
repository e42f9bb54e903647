"""Which tile a conv runs with: tables by architecture and shape, and the command that measures them.

    python -m onp_kernels.tiles --tune

times every candidate of this GPU's table on the convs of PreActResNet18, checks each against torch first, prints TFLOP/s beside
torch's, and writes the fastest to `tiles.json` beside this file, where `choose_tile` looks first. The file that comes with the
package was measured on one H200 (sm_90) with torch 2.11 and triton 3.6. `TILES`, for what was not measured, is reasoned: wide
tiles for long reductions, as many stages as shared memory takes (163 KiB a program on sm_80, 227 on sm_90 and sm_100), and no
tile that spills registers.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

TUNED = Path(__file__).with_name("tiles.json")


class Tile(NamedTuple):
    """`bm` positions x `bn` filters a program, `bc` input channels a step, `warps` warps, `stages` steps in flight.

    `bn` is at least 64 and `bc` at most 64, so that the zeros behind packed channels reach as far as a conv reads. `local`: the
    positions lie together in an image, instead of one position in many images. `registers`: the most a thread may have, so that
    more programs share a multiprocessor; 0 leaves it to the compiler.
    """

    bm: int
    bn: int
    bc: int
    warps: int
    stages: int
    local: bool = False
    registers: int = 0


# By architecture and bytes of an element; the first is the one for large problems.
TILES: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("sm_80", 2): (Tile(128, 128, 32, 8, 4), Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 4)),
    ("sm_80", 4): (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 8, 4)),
    ("sm_90", 2): (
        *(Tile(256, 128, 64, 8, 4), Tile(128, 128, 64, 4, 3)),
        *(Tile(128, 64, 64, 4, 3, registers=168), Tile(64, 64, 64, 4, 5)),
    ),
    ("sm_90", 4): (Tile(128, 64, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
    ("sm_100", 2): (Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4)),
    ("sm_100", 4): (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 4, 4)),
    ("interpreter", 2): (Tile(4096, 64, 64, 4, 1),),
    ("interpreter", 4): (Tile(4096, 64, 64, 4, 1),),
}
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


# What `tune` tries beside `TILES`.
CANDIDATES: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("sm_90", 2): (
        *(Tile(256, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4)),
        *(Tile(128, 128, 64, 8, 3, registers=128), Tile(256, 128, 64, 8, 3, local=True)),
        *(Tile(256, 64, 64, 8, 3), Tile(256, 64, 64, 8, 2, registers=128), Tile(128, 64, 64, 4, 3, registers=168)),
        *(Tile(128, 64, 64, 4, 3), Tile(128, 64, 64, 4, 3, registers=128)),
        *(Tile(128, 64, 64, 4, 4), Tile(128, 64, 64, 4, 3, local=True, registers=168)),
        *(Tile(256, 64, 64, 8, 2, local=True, registers=128), Tile(128, 128, 64, 8, 3, local=True, registers=128)),
        # More programs a multiprocessor, or fewer bytes a product.
        *(Tile(128, 64, 64, 4, 2), Tile(128, 64, 64, 4, 2, registers=128), Tile(128, 64, 32, 4, 4, registers=128)),
        *(Tile(256, 64, 64, 4, 2), Tile(256, 64, 64, 4, 3), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 4, 2)),
        *(Tile(128, 128, 32, 4, 4), Tile(128, 128, 64, 8, 2, registers=128), Tile(256, 128, 64, 8, 2)),
        *(Tile(256, 128, 32, 8, 4), Tile(128, 256, 64, 8, 2), Tile(128, 256, 32, 8, 4)),
    )
}


def choose_tile(
    device: torch.device, dtype: torch.dtype, positions: int, filters: int, channels: int, taps: int, masks: int
) -> Tile:
    """The tile for `masks` convs of `positions` outputs x `filters` over `channels` x `taps`: the one measured for the nearest
    number of outputs, or else the first of the table that is no wider than the filters and leaves no multiprocessor idle (the
    last, if none does)."""
    arch, processors = _device(device)
    size = dtype.itemsize
    measured = _measured().get(arch, {}).get(_key(size, filters, channels, taps), {})
    if measured:
        exponent = (positions * masks).bit_length()
        nearest = min(measured, key=lambda known: abs(known - exponent))
        if abs(nearest - exponent) <= 2:
            return _narrowed(measured[nearest], filters, channels)
    for tile in TILES[arch, size]:
        programs = -(-positions // tile.bm) * -(-filters // tile.bn) * masks
        if tile.bn <= max(64, _power_of_two(filters)) and programs >= processors:
            break
    return _narrowed(tile, filters, channels)


def elementwise_rows(device: torch.device) -> int:
    """Rows of up to 128 channels that a program of an elementwise kernel takes; the interpreter pays by the program."""
    return 32 if device.type == "cuda" else 1024


def _narrowed(tile: Tile, filters: int, channels: int) -> Tile:
    """No wider than the power of two that holds `filters` and `channels`; a matrix unit takes 16 at least."""
    return tile._replace(bn=min(tile.bn, _power_of_two(filters)), bc=min(tile.bc, _power_of_two(channels)))


def _power_of_two(count: int) -> int:
    return max(16, 1 << (count - 1).bit_length())


def _key(size: int, filters: int, channels: int, taps: int) -> str:
    return f"{8 * size} bit, {filters} filters, {channels} channels, {taps} taps"


@functools.cache
def _device(device: torch.device) -> tuple[str, int]:
    """Architecture whose table is used, and multiprocessors."""
    if device.type != "cuda":
        return "interpreter", 1
    major = torch.cuda.get_device_capability(device)[0]
    arch = "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"
    return arch, torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _measured() -> dict[str, dict[str, dict[int, Tile]]]:
    """By architecture, shape and the bit length of the number of outputs."""
    if not TUNED.exists():
        return {}
    return {
        arch: {key: {int(bits): Tile(*tile) for bits, tile in tiles.items()} for key, tiles in shapes.items()}
        for arch, shapes in json.loads(TUNED.read_text()).items()
    }


class Shape(NamedTuple):
    """A conv of PreActResNet18, width 64, and how many masks it is measured with."""

    side: int  # of the input
    channels: int
    filters: int
    taps: int  # along a side
    stride: int
    masks: int

    @property
    def sums(self) -> bool:
        """Whether it ends in a residual sum and a norm."""
        return self.stride == 1 and self.taps == 3


# Those that take most of the time first: what is left when time is up is not measured.
SHAPES = (
    *(Shape(32, 64, 64, 3, 1, 8), Shape(16, 128, 128, 3, 1, 8), Shape(8, 256, 256, 3, 1, 8), Shape(4, 512, 512, 3, 1, 8)),
    *(Shape(4, 512, 512, 3, 1, 24), Shape(32, 64, 128, 3, 2, 8), Shape(16, 128, 256, 3, 2, 8), Shape(8, 256, 512, 3, 2, 8)),
    *(Shape(32, 64, 128, 1, 2, 8), Shape(16, 128, 256, 1, 2, 8), Shape(8, 256, 512, 1, 2, 8)),
)


def tune(out: Path, images: int, seconds: float) -> None:
    """Time the candidates on this GPU in bfloat16, print them beside torch, and write the fastest of each shape to `out`."""
    import torch.nn.functional as F
    from triton.testing import do_bench

    from onp_kernels.common import compiled_together
    from onp_kernels.masked_conv import Norm, masked_conv_norm

    device = torch.device("cuda", torch.cuda.current_device())
    arch, _ = _device(device)
    started = time.monotonic()
    found = json.loads(out.read_text()) if out.exists() else {}
    best: dict[str, dict[int, Tile]] = {}

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16)

    def calls(shape: Shape, count: int) -> tuple[Callable[[Tile], torch.Tensor], torch.Tensor, Callable[[], object]]:
        """The conv with a tile, what it should give for the first mask, and torch's of one mask."""
        x = draw(shape.masks, count, shape.side, shape.side, shape.channels)
        weight = draw(shape.masks, shape.filters, shape.taps, shape.taps, shape.channels)
        weight /= (shape.taps**2 * shape.channels) ** 0.5
        bias = torch.zeros(1, shape.filters, device=device)
        geometry = {"stride": (shape.stride,) * 2, "padding": (shape.taps // 2,) * 2}
        nchw, filters = x[0].permute(0, 3, 1, 2), weight[0].permute(0, 3, 1, 2)
        expected = F.conv2d(nchw, filters, **geometry).permute(0, 2, 3, 1)
        kept = torch.full((shape.masks,), shape.channels, dtype=torch.int32, device=device)
        options: dict[str, Any] = geometry | {"inputs": kept if shape.sums else None}
        norm = None
        if shape.sums:
            residual = draw(shape.masks, *expected.shape)
            options |= {"residual": residual, "keep": torch.ones(shape.masks, shape.filters, dtype=torch.bool, device=device)}
            expected = expected + residual[0]
            norm = Norm(torch.ones(1, shape.filters, device=device), bias, "clamp")

        def ours(tile: Tile) -> torch.Tensor:
            y, _ = masked_conv_norm(x, weight, bias, norm, **options, activation="none", tile=tile)
            assert y is not None
            return y

        return ours, expected, lambda: F.conv2d(nchw, filters, **geometry)

    print(f"{torch.cuda.get_device_name(device)}, {images} images; TFLOP/s with the taps over padding, medians of do_bench")
    tiles = [*TILES[arch, 2], *CANDIDATES.get((arch, 2), ())]
    with compiled_together():
        for shape in SHAPES:
            ours, _, _ = calls(shape, images)  # another number may be another kernel
            for tile in _of_shape(tiles, shape):
                ours(tile)
    print(f"compiled after {time.monotonic() - started:.0f} s", flush=True)
    for shape in SHAPES:
        if time.monotonic() - started > seconds:
            print("time is up")
            break
        ours, expected, torchs = calls(shape, images)
        flops = 2 * expected.numel() * shape.taps**2 * shape.channels
        peer = flops / do_bench(torchs, warmup=5, rep=20, return_mode="median") / 1e9
        rates: dict[Tile, float] = {}
        for tile in _of_shape(tiles, shape):
            try:
                torch.testing.assert_close(ours(tile)[0], expected, rtol=2e-2, atol=4e-2)
                took = do_bench(lambda: ours(tile), warmup=3, rep=15, return_mode="median") / 1e3  # noqa: B023
                rates[tile] = shape.masks * flops / took / 1e12
            except (AssertionError, RuntimeError) as error:
                print(f"{tuple(tile)}: {str(error)[:300]}", flush=True)
        key = _key(2, shape.filters, shape.channels, shape.taps**2)
        if rates:
            outputs = expected.numel() // shape.filters * shape.masks
            best.setdefault(key, {})[outputs.bit_length()] = max(rates, key=rates.__getitem__)
        ranked = sorted(rates.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{tuple(tile)} {rate:.0f}" for tile, rate in ranked)
        print(f"{tuple(shape)}: torch {peer:.0f}; {shown}", flush=True)
        out.write_text(_lines(found | {arch: found.get(arch, {}) | best}))
    print(f"written to {out} after {time.monotonic() - started:.0f} s")


def _lines(table: dict[str, dict[str, Any]]) -> str:
    """As JSON, a line a shape."""
    archs = []
    for arch, shapes in table.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(tiles)}" for key, tiles in shapes.items()]
        archs.append(f" {json.dumps(arch)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(archs) + "\n}\n"


def _of_shape(tiles: list[Tile], shape: Shape) -> list[Tile]:
    """Those that are worth trying: none much wider than the filters, each once."""
    narrowed = dict.fromkeys(_narrowed(tile, shape.filters, shape.channels) for tile in tiles)
    return [tile for tile in narrowed if tile.bn >= min(128, shape.filters) or tile.bm == 128]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m onp_kernels.tiles", description="Measure the tile table on this GPU.")
    parser.add_argument("--tune", action="store_true", required=True, help="time every candidate tile, write the fastest")
    parser.add_argument("--out", type=Path, default=TUNED, help="table to write (default: %(default)s, which the kernels read)")
    parser.add_argument("--images", type=int, default=1000, help="images of 32x32 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="start no further shape after these (default: %(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU here, so there is nothing to measure", file=sys.stderr)
        return 2
    tune(args.out, args.images, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
