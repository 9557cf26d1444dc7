"""Certificates against the contracts that the artifact's target promises for each form."""

from __future__ import annotations

import tomllib
from pathlib import Path

from vsparse_check.comparison import VARIANTS, Certificates, Content
from vsparse_check.files import read_file
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import need, reading

DEFAULT, MAX_TARGET = "onnxruntime", 2**20

# What holds wherever float32 is computed: arithmetic that errs more, and none at all.
ABOUT_LESS = ("tf32", "real")


def runtime_of(root: Path, files: set[str]) -> str:
    """Returns the runtime that target.toml names; ONNX Runtime where it names none."""
    if "target.toml" not in files:
        return DEFAULT
    with reading("target.toml"):
        return str(read_target(root).get("runtime", {}).get("name", DEFAULT))


def read_target(root: Path) -> Content:
    """Returns the resolved target of an artifact."""
    return tomllib.loads(read_file(root / "target.toml", MAX_TARGET).decode())


def check_target(target: Content, certificates: Certificates) -> None:
    """Refuses a certificate under another contract than target.toml names for its form.

    Such a certificate is a theorem, and none about what this target executes. The recipe chooses
    the contract of the float32 file; one that allows more than the target's, or is about real
    arithmetic, says what it is about and holds.
    """
    promised: dict[str, str] = {name: one["contract"] for name, one in target["precisions"].items()}
    default = next(iter(promised.values()))
    for folder in VARIANTS.values():
        allowed = (default, promised.get("fp32", default), *ABOUT_LESS)
        _check_contract(folder, allowed, certificates)
    for name in PRECISIONS:
        _check_contract(f"certificate/{name}", (promised.get(name, ""),), certificates)


def _check_contract(folder: str, allowed: tuple[str, ...], certificates: Certificates) -> None:
    """Refuses a certificate whose contract is none of these; the first one is the target's."""
    if folder not in certificates:
        return
    found = certificates[folder]["contract"]["name"]
    stated = f"the contract {allowed[0]!s:.40}" if allowed[0] else "no such form"
    need(
        found in allowed,
        f"{folder} is under the contract {found!s:.40}, and target.toml promises {stated}: "
        "nothing is claimed about this target",
    )
