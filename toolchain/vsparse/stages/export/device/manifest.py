"""The folder's manifest: every field checked before it is used."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

from vsparse.stages.export.device.basics import Stop, sha256

HEX64 = re.compile(r"[0-9a-f]{64}\Z")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\Z")

C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}\Z")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


class DeviceJob:
    """What a run works on: the folder and its manifest, where results and scratch files go, how to time, and how long a step may take."""

    def __init__(self, folder: str, manifest: dict[str, Any], out: str, scratch: str, timing: dict[str, Any], limit: float) -> None:
        self.folder, self.manifest, self.out, self.scratch = folder, manifest, out, scratch
        self.timing, self.limit = timing, limit


def timing_of(manifest: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns how to time: as the folder says, and otherwise where that is asked for. Warm-up in runs replaces that in time."""
    timing = dict(manifest["timing"], warmup_runs=0)
    timing.update({key: value for key, value in given.items() if value is not None})
    if given.get("warmup_runs") is not None:
        timing["warmup_ms"] = 0
    for key in ("runs", "threads", "batch", "warmup_runs"):
        timing[key] = int(timing[key])
    return timing


def read_manifest(folder: str) -> dict[str, Any]:
    """Reads and checks manifest.json; a fault names the field."""
    path = os.path.join(folder, "manifest.json")
    try:
        with open(path, encoding="utf-8") as stream:
            manifest = json.loads(stream.read(1 << 24))
    except (OSError, ValueError, RecursionError) as error:
        raise Stop(2, f"{path} cannot be read ({error}); copy the whole device/ folder again") from None

    def check(good: bool, field: str, wanted: str) -> None:
        if not good:
            raise Stop(2, f"{path}: {field} is not {wanted}; copy the device/ folder again, or export it again")

    check(isinstance(manifest, dict), "the document", "a table")
    check(manifest.get("schema_version") == 1, "schema_version", "1")
    check(manifest.get("kind") == "vsparse-device-folder", "kind", "vsparse-device-folder")
    target, timing, models = manifest.get("target"), manifest.get("timing"), manifest.get("models")
    check(isinstance(target, dict), "target", "a table")
    for field in ("name", "kind", "runtime", "module", "soc"):
        check(isinstance(target.get(field), str), "target." + field, "a text")
    check(target["runtime"] in ("tensorrt", "onnxruntime"), "target.runtime", "tensorrt or onnxruntime")
    for field in ("modules", "power_rails"):
        check(isinstance(target.get(field), list) and all(isinstance(x, str) for x in target[field]), "target." + field, "a list of texts")
    check(isinstance(timing, dict), "timing", "a table")
    for field, least, most in (("runs", 1, 10**6), ("seconds", 0, 3600), ("warmup_ms", 0, 60000), ("threads", 1, 256), ("batch", 1, 65536)):
        value = timing.get(field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        check(number and least <= value <= most, "timing." + field, f"a number from {least} to {most}")
    check(isinstance(models, list) and 0 < len(models) <= 16, "models", "a list of 1 to 16 models")
    for i, model in enumerate(models):
        at = f"models[{i}]."
        check(isinstance(model, dict), at[:-1], "a table")
        for field in ("file", "input", "output", "role"):
            check(isinstance(model.get(field), str) and bool(PLAIN_NAME.match(model[field])), at + field, "a plain name")
        check(isinstance(model.get("sha256"), str) and bool(HEX64.match(model["sha256"])), at + "sha256", "64 hexadecimal digits")
        check(model.get("precision") in PRECISIONS, at + "precision", "one of " + ", ".join(PRECISIONS))
        check(isinstance(model.get("contract", ""), str), at + "contract", "a text")
        check(isinstance(model.get("structured_sparsity", False), bool), at + "structured_sparsity", "true or false")
        shape = model.get("input_shape")
        good = isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(n) is int and 0 < n <= 1 << 20 for n in shape)
        check(good, at + "input_shape", "a list of sizes")
        check_probes(check, model, at)
    check_sources(check, manifest)
    return dict(manifest)


def check_probes(check: Any, entry: dict[str, Any], at: str) -> None:
    check(isinstance(entry.get("probes"), list), at + "probes", "a list")
    for j, probe in enumerate(entry["probes"]):
        here = f"{at}probes[{j}]."
        check(isinstance(probe, dict), here[:-1], "a table")
        check(isinstance(probe.get("file"), str) and bool(PLAIN_NAME.match(probe["file"])), here + "file", "a plain name")
        check(isinstance(probe.get("sha256"), str) and bool(HEX64.match(probe["sha256"])), here + "sha256", "64 hexadecimal digits")
        for side in ("lower", "upper"):
            values = probe.get(side)
            check(isinstance(values, list) and bool(values) and all(finite(v) for v in values), here + side, "a list of numbers")
        check(len(probe["lower"]) == len(probe["upper"]), here + "upper", "as long as lower")


def check_sources(check: Any, manifest: dict[str, Any]) -> None:
    sources = manifest.setdefault("c_sources", [])
    check(isinstance(sources, list) and len(sources) <= 4, "c_sources", "a list of at most 4")
    for i, source in enumerate(sources):
        at = f"c_sources[{i}]."
        check(isinstance(source, dict), at[:-1], "a table")
        for field in ("file", "role"):
            check(isinstance(source.get(field), str) and bool(PLAIN_NAME.match(source[field])), at + field, "a plain name")
        check(isinstance(source.get("prefix"), str) and bool(C_NAME.match(source["prefix"])), at + "prefix", "a name in C")
        check(source.get("precision") in PRECISIONS, at + "precision", "one of " + ", ".join(PRECISIONS))
        files, shape, classes = source.get("files"), source.get("input_shape"), source.get("classes")
        check(isinstance(files, dict) and source["file"] in files, at + "files", "a table with the file")
        for name, digest in files.items():
            check(bool(PLAIN_NAME.match(name)), at + "files", "a table of plain names")
            check(isinstance(digest, str) and bool(HEX64.match(digest)), at + "files." + name, "64 hexadecimal digits")
        good = isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(n) is int and 0 < n <= 1 << 20 for n in shape)
        check(good, at + "input_shape", "a list of sizes")
        check(type(classes) is int and 0 < classes <= 1 << 20, at + "classes", "a number of classes")
        check_probes(check, source, at)


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_files(folder: str, manifest: dict[str, Any]) -> None:
    """Compares the sha256 of every model, probe and file in C with the manifest's."""
    listed: dict[str, str] = {}
    for model in manifest["models"] + manifest["c_sources"]:
        for entry in model["probes"] + ([model] if "files" not in model else []):
            listed[entry["file"]] = entry["sha256"]
        listed.update(model.get("files", {}))
    for name, digest in listed.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise Stop(2, f"{path} is not there; copy the whole device/ folder again")
        if sha256(path) != digest:
            raise Stop(2, f"{path} is not the file that was exported (its sha256 differs); copy the device/ folder again")
