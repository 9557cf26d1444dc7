"""Checks and times the certifying file of this folder on the device it was copied to: `python3 certify_on_device.py`.

One file, standard library only, Python 3.8 or newer, for folders whose manifest.json lists a certifying file. It audits what that file
returns against bounds that no device within the contract may exceed, times it, and writes results-certify.json.
Exit codes: 0 every gate passed; 1 a gate failed; 2 usage, or the folder is damaged; 3 device, runtime or tool absent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop, gate, say, sha256
from vsparse.stages.export.device.certify import certify_onnxruntime, certify_tensorrt, read_certifying
from vsparse.stages.export.device.machine import describe_device, device_fault
from vsparse.stages.export.device.manifest import check_files, read_manifest
from vsparse.stages.export.device.trtexec import Trtexec, find_trtexec


def measure_certifying(folder: str, out: str, root: str, any_device: bool, limit: float) -> dict[str, Any]:
    """Does everything and returns the results; raises Stop."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    entry, base = read_certifying(folder, manifest), manifest["models"][0]
    device, target = describe_device(root), manifest["target"]
    fault = device_fault(device, target)
    if fault and not any_device:
        raise Stop(3, "this is not the target {}: {}; run it there, or give --any-device".format(target["name"], fault))
    results = {
        "schema_version": 1,
        "kind": "vsparse-certifying-results",
        "created_unix_s": int(time.time()),
        "target": target["name"],
        "file": entry["file"],
        "onnx_sha256": entry["sha256"],
        "manifest_sha256": sha256(os.path.join(folder, "manifest.json")),
        "script_sha256": sha256(os.path.abspath(__file__)),
        "device": device,
        "timing": manifest["timing"],
    }
    if target["runtime"] == "tensorrt":
        found = certify_tensorrt(Trtexec(find_trtexec(root)), folder, out, entry, manifest, limit)
    else:
        found = certify_onnxruntime(folder, entry, base, manifest["timing"])
    found["gates"] = [gate("device", not fault, fault or "this is the target's device")] + found["gates"]
    results.update(found)
    results["passed"] = all(one["passed"] is not False for one in found["gates"])
    return results


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Checks and times the certifying file of this folder; writes results-certify.json.")
    parser.add_argument("--out", default="", help="where results-certify.json and the engine go (default: this folder)")
    parser.add_argument("--any-device", action="store_true", help="measure although this is not the target's device; the results say so")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one trtexec run may take")
    parser.add_argument("--root", default="/", help=argparse.SUPPRESS)  # the root of the device's files, for tests
    given = parser.parse_args(arguments)
    folder = os.path.dirname(os.path.abspath(__file__))
    out = os.path.abspath(given.out or folder)
    path = os.path.join(out, "results-certify.json")
    try:
        os.makedirs(out, exist_ok=True)
        results = measure_certifying(folder, out, given.root, given.any_device, given.timeout)
        with open(path + ".new", "w", encoding="utf-8") as stream:
            json.dump(results, stream, indent=2, allow_nan=False)
            stream.write("\n")
        os.replace(path + ".new", path)
    except Stop as stop:
        say(f"certify_on_device.py: {stop}")
        return stop.code
    except OSError as error:
        say(f"certify_on_device.py: {error}; make room, or give --out a folder that can be written")
        return 2
    except KeyboardInterrupt:
        say("certify_on_device.py: interrupted; run it again")
        return 130
    for outcome in results["gates"]:
        passed = {True: "passed", False: "FAILED", None: "not examined"}[outcome["passed"]]
        print("{}: {} ({})".format(outcome["name"], passed, outcome["detail"]))
    ratio = " ({:.2f} of inference)".format(results["ratio_of_medians"]) if "ratio_of_medians" in results else ""
    print("{}: p50 {:.3f} ms{}".format(results["file"], results["latency"]["latency_ms_p50"], ratio))
    return 0 if results["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
