"""The package's functions: each is found under its name, whatever has been imported before."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path

import vsparse

PROGRAM = """
import importlib, pkgutil, types
import vsparse

for found in pkgutil.walk_packages(vsparse.__path__, "vsparse."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in vsparse.__all__:
    value = getattr(vsparse, name)
    assert callable(value) and not isinstance(value, types.ModuleType), f"vsparse.{name} is {value!r}"
assert [target.name for target in vsparse.targets()]
assert vsparse.models().recipes
assert all(finding.name for finding in vsparse.doctor())
"""


def test_every_function_is_found_after_every_module_was_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_has_the_name_of_a_function() -> None:
    folder = Path(vsparse.__file__).parent
    assert not {path.stem for path in folder.iterdir()} & set(vsparse.__all__)


def test_help_of_the_package_shows_every_function() -> None:
    text = pydoc.plain(pydoc.render_doc(vsparse))
    for name in vsparse.__all__:
        assert f"\n    {name}(" in text, name
