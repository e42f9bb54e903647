"""The version of onp, for the package, its reports and `pyproject.toml`."""

VERSION = "0.1.0"
