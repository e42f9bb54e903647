"""The engine in Triton kernels (`onp_kernels`) and CUDA graphs, for NVIDIA GPUs."""
