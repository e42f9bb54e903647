"""What a run found and did: audit, figures, warnings and diagnostics; as JSON, text, HTML page and model card."""
