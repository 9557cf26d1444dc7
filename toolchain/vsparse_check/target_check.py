"""target.toml against the certificates: what is promised for each form, and who can keep it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from vsparse_check.comparison import VARIANTS, Certificates, Content
from vsparse_check.contracts import CONTRACTS
from vsparse_check.files import read_file, read_json
from vsparse_check.layout import PRECISIONS
from vsparse_check.refusal import need, reading

DEFAULT, MAX_TARGET = "onnxruntime", 2**20

# What holds wherever float32 is computed: arithmetic that errs more, and none at all.
ABOUT_LESS = ("tf32", "real")
# Contracts that not every target keeps, and the runtimes that do. Nothing keeps exact arithmetic,
# and only C source adds in order, which no target promises of a model file.
KEPT_BY: dict[str, tuple[str, ...]] = {
    "real": (),
    "sequential": (),
    "fp16-tensorrt": ("tensorrt",),
    "fp16-chain": ("onnxruntime",),
    "int8": ("onnxruntime", "c"),
    "int8-exact": (),
    "int8-tensorrt": ("tensorrt",),
}
# Devices on whose processor ONNX Runtime adds float16 numbers in float16, term after term.
ADDS_IN_FP16 = ("raspberry-pi", "jetson")
TYPED_FROM = 10  # the version of TensorRT that obeys the types of a file
MANIFEST = "device/manifest.json"


def runtime_of(root: Path, files: set[str]) -> str:
    """Returns the runtime that target.toml names; ONNX Runtime where it names none."""
    if "target.toml" not in files:
        return DEFAULT
    with reading("target.toml"):
        return str(read_target(root).get("runtime", {}).get("name", DEFAULT))


def read_target(root: Path) -> Content:
    """Returns the resolved target of an artifact."""
    return tomllib.loads(read_file(root / "target.toml", MAX_TARGET).decode())


def check_target(target: Content, certificates: Certificates, recipe: Content) -> None:
    """Refuses a certificate under another contract than target.toml names for its form.

    And a target whose runtime keeps no such contract, and a form that recipe.toml asks for of which
    nothing is certified.

    Such a certificate is a theorem, and none about what this target executes. The recipe chooses
    the contract of the float32 file; one that allows more than the target's, or is about real
    arithmetic, says what it is about and holds.
    """
    promised: dict[str, str] = {name: one["contract"] for name, one in target["precisions"].items()}
    default = next(iter(promised.values()))
    for name, contract in promised.items():
        need(
            _is_kept(contract, target),
            f"target.toml promises the contract {contract!s:.40} of {name!s:.40}, which "
            f"{target['runtime']['name']!s:.40} on its device does not keep: nothing is claimed "
            "about this target",
        )
    for folder in VARIANTS.values():
        allowed = (default, promised.get("fp32", default), *ABOUT_LESS)
        _check_contract(folder, allowed, certificates)
    for name in PRECISIONS:
        _check_contract(f"certificate/{name}", (promised.get(name, ""),), certificates)
    asked = recipe.get("export", {}).get("precisions", [])
    # In place of "auto" a build states the names; where it stands, all are meant.
    for name in promised.keys() & set(PRECISIONS) if "auto" in asked else asked:
        need(
            f"certificate/{name}" in certificates,
            f"recipe.toml asks for {name!s:.40}, and no certificate is about it",
        )


def _is_kept(contract: str, target: Content) -> bool:
    """Returns whether the runtime of a target may keep a contract, on a processor of its kind."""
    runtime, kind = target["runtime"]["name"], target["device"]["kind"]
    if contract not in CONTRACTS or runtime not in KEPT_BY.get(contract, (runtime,)):
        return False
    if contract == "fp16" and runtime == "onnxruntime":
        return kind not in ADDS_IN_FP16
    if contract == "fp16-chain":
        return kind == "host" or kind in ADDS_IN_FP16
    majors = [version.split(".")[0] for version in target["runtime"].get("versions", [])]
    old = any(major.isdigit() and int(major) < TYPED_FROM for major in majors)
    return contract != "fp16-tensorrt" or not old


def check_named_target(root: Path, files: set[str], target: Content) -> None:
    """Refuses another device or runtime than the device folder was written for."""
    if MANIFEST not in files:
        return
    said = read_json(root / MANIFEST).get("target", {})
    wanted = {
        "name": target["name"],
        "kind": target["device"]["kind"],
        "module": target["device"].get("module", ""),
        "runtime": target["runtime"]["name"],
        "soc": target["device"].get("soc", ""),
        "modules": target["device"].get("modules", []),
    }
    for key, value in wanted.items():
        need(
            said.get(key, value) == value,
            f"{MANIFEST} is for another target than target.toml describes: its {key} differs",
        )


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
