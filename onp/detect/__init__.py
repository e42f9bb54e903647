"""Is there a backdoor, and towards which class: batch-norm statistics, trigger inversion, anomaly indices, the trigger bank.

Entry points: `onp.detect.bank.scan` and `onp.detect.bank.build_bank`. May import `onp.data`, `onp.model` and `onp.engine`.
"""
