"""What two machines must have in common for their results to be the same bits: the code, the libraries, the kind of processor."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime", "scipy", "distributed")
# Instructions between which the libraries choose their kernels.
INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve", "bf16", "i8mm")
# Variables that make them choose others.
CHOOSING = ("ATEN_CPU_CAPABILITY", "DNNL_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_", "TORCH_MKLDNN")


@cache
def fingerprint() -> dict[str, str]:
    """Returns, by name, what must be the same on every machine that works along."""
    return {"code": _code(), "python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}, "processor": _processor()}


def differences(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """Returns how another machine differs, as `torch 2.4.0 there, 2.5.0 here`; empty where it does not."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return "; ".join(f"{_words(name)} {_short(name, theirs)} there, {_short(name, ours)} here" for name in names)


def _words(name: str) -> str:
    return "the code of vsparse has the hash" if name == "code" else name


def _short(name: str, of: dict[str, str]) -> str:
    return of.get(name, "absent")[: 12 if name == "code" else 300]


def _code() -> str:
    """One hash of all sources of the package, byte for byte."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """The architecture, the maker and the instructions of this processor, and variables that choose among kernels."""
    told: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    has = set(told.get("flags", told.get("Features", "")).split())
    chosen = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(CHOOSING)]
    maker = told.get("vendor_id", told.get("CPU implementer", ""))
    return " ".join([platform.machine().lower(), *filter(None, [maker]), *(name for name in INSTRUCTIONS if name in has), *chosen])
