"""A small table, made once for all tests of `onp.compare`."""

import pytest
from helpers.small_tables import table_config

from onp.compare import compare


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return table_config(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="session")
def rows(config):
    return compare(config)
