"""The contract of every op in plain torch (`reference`), and the Triton kernels of the evaluator on GPUs.

The kernels were compiled for sm_80, sm_90 and sm_100 and run by Triton's interpreter; they have not yet run on a GPU.
"""
