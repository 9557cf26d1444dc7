"""Joins the parts of the device script to one file that needs nothing but Python's standard library."""

from __future__ import annotations

import ast
from pathlib import Path

PARTS = Path(__file__).resolve().parent / "device"
# Each part uses only what stands before it.
ORDER = (
    "basics",
    "manifest",
    "machine",
    "latency",
    "engine_layers",
    "trtexec",
    "audit",
    "measure_tensorrt",
    "measure_onnxruntime",
    "main",
)
# Of the script that is there beside a certifying file alone.
CERTIFYING_ORDER = ("basics", "manifest", "machine", "latency", "engine_layers", "trtexec", "certify", "certify_main")


def device_script() -> str:
    """Returns the source of run_on_device.py: imports once, then the parts in order; its docstring is that of `main`."""
    return _joined(ORDER)


def certifying_script() -> str:
    """Returns the source of certify_on_device.py, made as that of run_on_device.py."""
    return _joined(CERTIFYING_ORDER)


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
