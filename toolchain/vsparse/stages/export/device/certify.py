"""The certifying file on the device: what it returns against its bounds, and what it takes beside inference."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import tempfile
from typing import Any

from vsparse.stages.export.device.basics import Stop, gate, read_all, say, sha256
from vsparse.stages.export.device.engine_layers import certifying_faults, layer_faults, parse_layers
from vsparse.stages.export.device.latency import latency_in_blocks, read_times
from vsparse.stages.export.device.manifest import DeviceJob
from vsparse.stages.export.device.trtexec import Trtexec

# Contracts of further certifying files, by the precision of their networks; strong typing alone keeps what they name in float32.
FURTHER = {"fp16": ("fp16", "fp16-tensorrt"), "int8": ("int8", "int8-exact", "int8-tensorrt")}
ARITHMETIC = {
    "fp32": "every layer shows fp32 without Winograd, FFT or TF32",
    **{
        one: f"every layer that certifies shows fp32, and every other the contract {one}"
        for contracts in FURTHER.values()
        for one in contracts
    },
}
CERTIFYING_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\Z")


def read_certifying(folder: str, manifest: dict[str, Any], wanted: bool) -> list[dict[str, Any]]:
    """Returns the entries of all certifying files, that of the float32 model first; `wanted`: there must be one."""
    first, further = manifest.get("certifying"), manifest.get("further_certifying", [])
    if not isinstance(further, list) or (further and not first):
        raise Stop(
            2, "manifest.json: further_certifying is not a list beside certifying; copy the device/ folder again, or export it again"
        )
    found = [read_one(folder, first, "certifying")] if wanted or first else []
    for i, entry in enumerate(further):
        found.append(read_one(folder, entry, f"further_certifying[{i}]"))
        precision = str(entry.get("precision"))
        known = entry.get("contract") in FURTHER.get(precision, ()) and entry.get("role") == "certifying-" + precision
        if not known or not isinstance(entry.get("unrounded", []), list):
            raise Stop(2, f"manifest.json: further_certifying[{i}] is of no form that this script knows; copy the device/ folder again")
    return found


def read_one(folder: str, entry: Any, place: str) -> dict[str, Any]:
    """Returns the entry of a certifying file, every field of it checked, and its files compared with their hashes."""

    def check(good: bool, field: str, wanted: str) -> None:
        if not good:
            raise Stop(2, f"manifest.json: {place}{field} is not {wanted}; copy the device/ folder again, or export it again")

    check(isinstance(entry, dict), "", "a table")
    assert isinstance(entry, dict)
    for field in ("file", "input", "epsilon", "logits", "predicted", "margin"):
        check(isinstance(entry.get(field), str) and bool(CERTIFYING_NAME.match(entry[field])), "." + field, "a plain name")
    shape, probes = entry.get("input_shape"), entry.get("probes")
    check(
        isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(n) is int and 0 < n <= 1 << 20 for n in shape), ".input_shape", "sizes"
    )
    check(isinstance(probes, list), ".probes", "a list")
    for j, probe in enumerate(entry["probes"]):
        here = f".probes[{j}]"
        check(isinstance(probe, dict), here, "a table")
        check(isinstance(probe.get("file"), str) and bool(CERTIFYING_NAME.match(probe["file"])), here + ".file", "a plain name")
        numbers = [probe.get(name) for name in ("lower", "upper", "margin_upper")]
        check(all(isinstance(one, list) and one and all(is_number(v) for v in one) for one in numbers), here, "lists of numbers")
        check(len({len(one) for one in numbers}) == 1 and is_number(probe.get("epsilon")), here, "as long as the logits")
    for one in [entry] + entry["probes"]:
        path = os.path.join(folder, one["file"])
        if not os.path.isfile(path) or sha256(path) != one.get("sha256"):
            raise Stop(2, f"{path} is not there, or not the file that was exported (its sha256 differs); copy the device/ folder again")
    return entry


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def audit_certifying(entry: dict[str, Any], results: list[tuple[list[float], int, float]], slack: float) -> dict[str, Any]:
    """Compares logits with their enclosures, and margins with what no device within the contract may exceed."""
    for probe, (logits, predicted, margin) in zip(entry["probes"], results):  # noqa: B905 (strict= is newer than Python 3.8)
        name = "{} at epsilon {:g}".format(probe["file"], probe["epsilon"])
        if len(logits) != len(probe["lower"]) or not 0 <= predicted < len(logits):
            return gate("audit", False, f"{name}: {len(logits)} logits and the class {predicted}")
        for i, value in enumerate(logits):
            room = slack * abs(value)
            if not (math.isfinite(value) and probe["lower"][i] - room <= value <= probe["upper"][i] + room):
                return gate("audit", False, f"{name}: logit {i} is {value!r}, outside its enclosure; nothing is certified on this device")
        most = probe["margin_upper"][predicted]
        if not margin <= most + slack * abs(most):
            return gate(
                "audit", False, f"{name}: margin {margin!r} of class {predicted}, above {most!r}; nothing is certified on this device"
            )
    return gate("audit", True, f"logits and margins of {len(results)} probe(s) keep within their bounds")


def certify_tensorrt(tool: Trtexec, job: DeviceJob, entry: dict[str, Any]) -> dict[str, Any]:
    """Builds an engine of a certifying file, reads its layers back, audits and times it; Stop where types are not obeyed."""
    contract = entry.get("contract") or "fp32"
    if contract != "fp32" and tool.version[0] < 10:
        raise Stop(1, "{} needs the strong typing of TensorRT 10 or newer: before, its bounds could be in any format".format(entry["file"]))
    timing, folder, out, limit = job.timing, job.folder, job.out, job.limit
    engine = os.path.join(out, os.path.splitext(entry["file"])[0] + ".engine")
    shape = "{}:{}".format(entry["input"], "x".join(str(n) for n in [1] + entry["input_shape"]))
    model = dict(entry, precision=entry.get("precision", "fp32"))
    with tempfile.TemporaryDirectory(dir=out, prefix=".vsparse-") as scratch:
        layer_file, times, radius, output = (os.path.join(scratch, n) for n in ("l.json", "t.json", "e.bin", "o.json"))
        cache = os.path.join(out, "timing-{}.cache".format(".".join(str(n) for n in tool.version)))
        say(f"building {engine} …")
        build = tool.build_options(model, os.path.join(folder, entry["file"]), engine, layer_file, shape, cache)
        tool.run(build, "build an engine from " + entry["file"], limit)
        if not os.path.isfile(layer_file):
            tool.run(tool.info_options(engine, layer_file, shape), "read the layers of the engine back", limit)
        layers = parse_layers(read_all(layer_file))
        faults = certifying_faults(layers, contract, entry.get("unrounded", ())) if contract != "fp32" else layer_faults(layers, "fp32", ())
        results = []
        for probe in entry["probes"]:
            with open(radius, "wb") as stream:
                stream.write(struct.pack("<f", probe["epsilon"]))
            loads = "{}:{},{}:{}".format(entry["input"], os.path.join(folder, probe["file"]), entry["epsilon"], radius)
            try:
                tool.run(tool.probe_options(engine, shape, loads, output), "run the probe " + probe["file"], limit)
                found = {one["name"]: one["values"] for one in json.loads(read_all(output))}
                logits = [float(value) for value in found[entry["logits"]]]
                results.append((logits, int(found[entry["predicted"]][0]), float(found[entry["margin"]][0])))
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
                raise Stop(1, "trtexec wrote no readable output for {} ({!r})".format(probe["file"], error)) from None
        say("timing {} …".format(entry["file"]))
        tool.run(tool.time_options(engine, times, shape, timing), "time the engine of " + entry["file"], limit)
        samples = read_times(times)[0][timing["warmup_runs"] :]
    return {
        "runtime": {"name": "tensorrt", "version": ".".join(str(n) for n in tool.version), "tool": tool.path},
        "engine_file": os.path.basename(engine),
        "engine_sha256": sha256(engine),
        "gates": [
            gate("arithmetic", not faults, "; ".join(faults[:5]) or ARITHMETIC[contract]),
            audited(entry, results, 1e-5),  # trtexec prints six significant digits
        ],
        "latency": latency_in_blocks([samples]),
    }


def audited(entry: dict[str, Any], results: list[tuple[list[float], int, float]], slack: float) -> dict[str, Any]:
    return audit_certifying(entry, results, slack) if results else gate("audit", None, "the folder holds no probes")
