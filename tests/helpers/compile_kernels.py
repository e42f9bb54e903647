"""Compiles every kernel for GPUs that need not be there; prints a JSON list of what came out. Run by test_kernels_compile.py.

A process of its own, because triton decides once whether it interprets or compiles.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from onp_kernels.channels import kept_channels_kernel, pack_filters_kernel, scale_act_kernel
from onp_kernels.head import head_kernel, tap_means_kernel
from onp_kernels.masked_conv import masked_conv_kernel
from onp_kernels.tiles import TILES

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FLOATS = ("low", "high", "z_low", "z_high")
CAPABILITY = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
INT32 = {"inputs", "outputs", "index", "count", "row_index", "row_count", "column_index", "column_count", "expected", "column"}
POINTERS = INT32 | {"x", "weight", "bias", "keep", "residual", "y", "z", "packed", "packed_bias", "scale", "shift", "base"}
POINTERS |= {"sums"}


def compiled(kernel, arch: str, dtype: str, constants: dict, warps: int = 4, stages: int = 3, registers=None) -> dict:
    """Registers, stack and shared memory (bytes) and matrix instructions of `kernel`; pointers and sizes divide by 16."""
    signature, aligned = {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name not in POINTERS:
            signature[name] = "i32"
        else:
            floats = ("bias", "packed_bias", "scale", "shift", "base")
            other = dict.fromkeys(floats, "fp32") | {"keep": "u8", "sums": "i64"}
            signature[name] = "*" + ("i32" if name in INT32 else other.get(name, dtype))
        if name not in constants and name not in FLOATS and not parameter.do_not_specialize:
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    found = triton.compile(source, target=GPUTarget("cuda", CAPABILITY[arch], 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(found.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    (used, stack, local) = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    ptx = found.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "arch": arch,
        "dtype": dtype,
        "tile": [constants.get("BM"), constants.get("BN"), constants.get("BC"), warps, stages],
        "shared": found.metadata.shared,
        "registers": int(used),
        "stack": int(stack) + int(local),
        "matrix": [name for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma") if name in ptx],
        "asynchronous": "cp.async" in ptx,
    }


def conv(arch: str, size: int, tile, one_position: bool) -> dict:
    """The conv with everything its epilogue can do; channels and filters are packed."""
    constants = {"ACTIVATION": "clamp", "PRECISION": "tf32x3", "BM": tile.bm, "BN": tile.bn, "BC": tile.bc}
    constants |= {"Z_ACTIVATION": "clamp", "LOCAL": tile.local, "FEW_TAPS": True, "EVEN": True}
    constants |= {"dilation_h": 1, "dilation_w": 1, "ONE_POSITION": one_position}
    dtype = "bf16" if size == 2 else "fp32"
    row = compiled(masked_conv_kernel, arch, dtype, constants, tile.warps, tile.stages, tile.registers or None)
    return row | {"tile": list(tile)}


def main() -> None:
    rows = []
    for (arch, size), tiles in TILES.items():
        if arch != "interpreter":
            # Large problems have tiles of one position; what is more work is a tile of several.
            rows += [conv(arch, size, tile, one) for tile in tiles for one in (False, True)[: 3 - size // 2]]
    for arch in CAPABILITY:
        rows.append(compiled(kept_channels_kernel, arch, "bf16", {"BLOCK": 2048}))
        rows.append(compiled(pack_filters_kernel, arch, "bf16", {"BK": 16, "BC": 64}))
        rows.append(compiled(scale_act_kernel, arch, "bf16", {"ACTIVATION": "silu", "BM": 32, "BC": 128}))
        rows.append(compiled(tap_means_kernel, arch, "bf16", {"BI": 4, "BT": 16, "BP": 16, "BC": 128}))
        rows.append(compiled(head_kernel, arch, "bf16", {"SCALE": 2.0**40, "MOST": 10.0, "BM": 16, "BN": 128, "BC": 32}, 8))
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
