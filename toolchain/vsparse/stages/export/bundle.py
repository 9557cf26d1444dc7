"""Joins the parts of the device script to one file that needs nothing but Python's standard library."""

from __future__ import annotations

import ast
from pathlib import Path

PARTS = Path(__file__).resolve().parent / "device"
# Each part uses only what stands before it.
ORDER = (
    "basics",
    "manifest",
    "facts",
    "sensors",
    "power",
    "latency",
    "noise",
    "layer_times",
    "engine_layers",
    "trtexec",
    "audit",
    "certify",
    "measure_tensorrt",
    "c_harness",
    "worker",
    "tensorrt_module",
    "forms",
    "group",
    "main",
)
# What the names of earlier folders run; argv[0] is that of the agent, so that it finds its folder.
LAUNCHER = '''#!/usr/bin/env python3
"""Runs agent.py of this folder{what}: the agent had this name, and is run by it still."""

from __future__ import annotations

import os
import runpy
import sys

AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")
if __name__ == "__main__":
    sys.argv[:1] = [AGENT{more}]
    runpy.run_path(AGENT, run_name="__main__")
'''


def agent_script() -> str:
    """Returns the source of agent.py: imports once, then the parts in order; its docstring is that of `main`."""
    return _joined(ORDER)


def device_script() -> str:
    """Returns the source of run_on_device.py, which runs agent.py."""
    return LAUNCHER.format(what="", more="")


def certifying_script() -> str:
    """Returns the source of certify_on_device.py, which runs agent.py on the file that certifies its own input."""
    return LAUNCHER.format(what=" on the file that certifies its own input", more=', "--certify"')


def _joined(order: tuple[str, ...]) -> str:
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    bodies = []
    header = ""
    for name in order:
        source = (PARTS / f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        header = ast.get_docstring(tree, clean=False) or ""
        lines = source.splitlines()
        for i, node in enumerate(tree.body):
            if isinstance(node, ast.Import):
                plain.update(f"import {alias.name}" for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                if node.module != "__future__" and not (node.module or "").startswith("vsparse."):
                    named.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
            elif not (i == 0 and isinstance(node, ast.Expr)):
                continue
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = ""
        bodies.append("\n".join(lines).strip("\n"))
    imports = sorted(plain) + [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    return (
        "\n".join(
            [f'#!/usr/bin/env python3\n"""{header}"""', "", "from __future__ import annotations", "", *imports, "", "", *_spaced(bodies)]
        )
        + "\n"
    )


def _spaced(bodies: list[str]) -> list[str]:
    spaced: list[str] = []
    for body in bodies:
        spaced += [body, "", ""]
    return spaced[:-2]
