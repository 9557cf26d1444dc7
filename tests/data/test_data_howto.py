"""What docs/how-to-own-data.md shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vsparse.data import load
from vsparse.recipe import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "how-to-own-data.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the docs folder of a checkout")
def test_the_worked_example(tmp_path: Path) -> None:
    text = PAGE.read_text()
    make, measure = re.findall(r"```python\n(.*?)```", text, re.S)
    (recipe_text,) = [one for one in re.findall(r"```toml\n(.*?)```", text, re.S) if one.startswith('name = "floor"')]
    printed = subprocess.run([sys.executable, "-c", make + measure], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / "my.toml").write_text(recipe_text)
    recipe = load_recipe(str(tmp_path / "my.toml"))
    splits = load(recipe.data, tmp_path, recipe.train.seed)
    assert splits.train.classes == ("free", "blocked")
    assert splits.train.pixels.shape[1:] == (3, 16, 16)
    assert splits.train.groups is not None
    assert splits.test.groups is not None
    assert not np.intersect1d(splits.train.groups, splits.test.groups).size
    measured = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    assert np.allclose(measured[:3], recipe.data.mean, atol=0.03)
    assert np.allclose(measured[3:], recipe.data.std, atol=0.05)
