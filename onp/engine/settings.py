"""How an evaluator computes: backend, precision, memory, and the sizes that were tuned by measurement."""

from __future__ import annotations

from dataclasses import dataclass

from onp.engine.backend import Backend, Machine, Precision


@dataclass(frozen=True)
class Tuning:
    """Thresholds and sizes of an evaluator; the defaults were measured."""

    agreement: float = 0.995  #: least share of labels that bfloat16 and float32 must have in common for "auto" to take bfloat16
    table_rows: int = 256  #: of the table of scored masks at first; it doubles
    #: Bytes of channels that CPU kernels compute together, a vector register or a row of a matrix tile: to leave out fewer
    #: pruned channels than that saves nothing.
    lane_bytes: int = 64
    #: Input times output channels from which convolutions over small maps run as one matrix product per filter tap
    #: (float32, AVX-512).
    tap_gemm_products: int = 1 << 17
    cpu_chunk_bytes: int = 24 << 20  #: of one step of one chunk: what the last-level cache of a CPU can be expected to hold
    gpu_chunk_bytes: int = 2 << 30  #: the same for the torch backend on a GPU
    #: Numbers of masks that CUDA graphs are captured for, ascending; other numbers are filled up to the next.
    batch_sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class EvaluatorSettings:
    """How an evaluator computes."""

    #: "triton" (kernels for NVIDIA GPUs), "onednn" (fused CPU primitives), "torch" (ordinary operators, any device), or "auto"
    #: for the fastest that can run.
    backend: Backend = "auto"
    #: "float32", "bfloat16", or "auto" for bfloat16 where the device has matrix units for it and it agrees with float32.
    precision: Precision = "auto"
    memory_budget: int = 1 << 30  #: bytes the activation cache may hold
    chunk: int | None = None  #: images that run together; None for as many as fit the cache
    tuning: Tuning = Tuning()
    machine: Machine | None = None  #: None for this one
