"""The folder of a table: other settings, other victims and damaged cells are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_tables import FIGURES, figures_at_once, no_training, other_table, ready_victim

from onp.compare import compare
from onp.errors import InputError


def test_a_folder_of_other_settings_is_refused(config, rows, tmp_path):
    with pytest.raises(InputError, match="--passes 1500"):
        compare(replace(config, passes=2000))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        compare(replace(config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_victim_of_the_same_name_is_refused(config, rows, tmp_path):
    table = other_table(config, tmp_path, ready_victim(config, rows, tmp_path / "a" / "vic"))
    compare(table, figures_at_once, no_training)
    kept = next((tmp_path / "t" / "cells").iterdir())
    other = ready_victim(config, rows, tmp_path / "b" / "vic")
    clean = next(folder for folder in (Path(config.out) / "victims").iterdir() if folder.name.startswith("none"))
    shutil.copy(clean / "model.safetensors", other)
    with pytest.raises(InputError, match="with another model"):
        compare(replace(table, victims=(other,)))
    with pytest.raises(InputError, match="with another normalisation"):
        compare(replace(table, victims=(ready_victim(config, rows, tmp_path / "c" / "vic", norm="none"),)))
    assert compare(table, figures_at_once, no_training)[0]["acc"] == FIGURES["acc"]
    row = json.loads(kept.read_text())
    del row["content"]
    kept.write_text(json.dumps(row))
    with pytest.raises(InputError, match="damaged; delete it"):
        compare(table, figures_at_once, no_training)


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "\\xff"])
def test_a_damaged_cell_is_refused_before_any_work(config, rows, tmp_path, text):
    table = other_table(config, tmp_path, ready_victim(config, rows, tmp_path / "vic"))
    compare(table, figures_at_once, no_training)
    kept = next((tmp_path / "t" / "cells").iterdir())
    kept.write_bytes(text.encode("latin-1"))

    def work(item):
        pytest.fail("a cell ran")

    with pytest.raises(InputError, match="damaged; delete it"):
        compare(replace(table, defences=("clp", "ft")), work, work)
