"""Scores many masks at once: the plan, fused steps, the torch and the Triton engine, counting of ACC and ASR.

Entry point: `onp.engine.evaluator.Evaluator`. May import `onp.data` and `onp.model`.
"""
