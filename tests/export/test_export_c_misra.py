"""What cppcheck's addon for MISRA C:2012 finds in the C that is written: exactly the deviations that docs/c.md lists with their reasons."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_nets import networks

from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.quantise import quantise

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "c.md"
# Of the compiler: without them the file is refused by its own #error.
PLATFORM = ("-U__GNUC__", "-DFLT_EVAL_METHOD=0", "-DFLT_RADIX=2", "-DFLT_MANT_DIG=24", "-DFLT_MAX_EXP=128")


def listed():
    """Returns rule, category and reason of every deviation that the document lists."""
    section = DOCUMENT.read_text().partition("## MISRA C:2012")[2].partition("\n## ")[0]
    return re.findall(r"^\| (\d+\.\d+) \| (required|advisory) \| (.+) \|$", section, re.MULTILINE)


def test_the_list_has_each_rule_once_with_a_reason():
    rules = [rule for rule, _, _ in listed()]
    assert rules == sorted(set(rules), key=lambda rule: tuple(map(int, rule.split("."))))
    assert all(len(reason) > 20 for _, _, reason in listed())


@pytest.mark.slow
def test_the_deviations_are_those_that_are_listed(tmp_path):
    if shutil.which("cppcheck") is None:
        pytest.skip("needs cppcheck and its addon misra")
    found = {}
    for number, graph in enumerate(networks()):
        folder = tmp_path / str(number)
        folder.mkdir()
        emit_c(graph).write(folder)
        emit_int8_c(quantise(graph, np.random.default_rng(0).random((30, *graph.input_shape), dtype=np.float32))).write(folder)
        for name in ("model.c", "model.int8.c"):
            command = ["cppcheck", "--addon=misra", "--std=c99", "--quiet", *PLATFORM, name]
            said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
            for line in said.splitlines():
                if rule := re.search(r"\[misra-c2012-([\d.]+)\]$", line):
                    found.setdefault(rule[1], line)
    assert set(found) - {rule for rule, _, _ in listed()} == set(), found
    assert {rule for rule, _, _ in listed()} - set(found) == set()
