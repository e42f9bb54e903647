"""The contract of every op in plain torch (`reference_graph`, `reference_conv`), and the Triton kernels of the GPU evaluator.

They run on sm_90 (an H200); for sm_80 and sm_100 they were compiled only, and everywhere run by Triton's interpreter.
"""
