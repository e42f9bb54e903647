"""What a run found and did: figures, warnings and diagnostics; as JSON, text, HTML page and model card.

`build.build_report` makes the `report.Report`; `audit.audit_repair` and `diagnostics.diagnose` measure what they
show. The prose is in `sentences` and `warnings`. It may import what `onp.defend` may; no stage before the audit imports it.
"""
