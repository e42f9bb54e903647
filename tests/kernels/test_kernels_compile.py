"""Every kernel and tile compiles for GPUs that are not here, fits their shared memory, keeps its values in registers and uses
the matrix instructions of its architecture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra `triton` is not installed")

from onp_kernels.tiles import SHARED_BYTES, TILES

MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """One row a kernel, tile and architecture."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # an old result proves nothing
    script = Path(__file__).parents[1] / "helpers" / "compile_kernels.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_is_compiled_for_every_architecture(rows):
    found = {(row["kernel"], row["arch"]) for row in rows}
    kernels = {"masked_conv_kernel", "kept_channels_kernel", "pack_filters_kernel", "scale_act_kernel"}
    kernels |= {"tap_means_kernel", "head_kernel"}
    assert found == {(kernel, arch) for kernel in kernels for arch in MATRIX}
    tiles = {(row["arch"], {"bf16": 2, "fp32": 4}[row["dtype"]], *row["tile"]) for row in rows if "conv" in row["kernel"]}
    wanted = {(arch, size, *tile) for (arch, size), table in TILES.items() for tile in table if arch in MATRIX}
    assert tiles == wanted


def test_shared_memory_and_registers_suffice(rows):
    for row in rows:
        assert row["shared"] <= SHARED_BYTES[row["arch"]], row
        assert row["stack"] == 0, f"spills: {row}"
        assert row["registers"] * 32 * row["tile"][3] <= 65536, row


def test_convs_use_the_matrix_units_and_load_ahead(rows):
    for row in rows:
        if row["kernel"] == "masked_conv_kernel":
            assert MATRIX[row["arch"]] in row["matrix"], row
            assert row["asynchronous"], row
