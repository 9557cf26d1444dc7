"""Builds, checks and times the models of this folder on the device it was copied to: `python3 run_on_device.py`.

One file, standard library only, Python 3.8 or newer. It reads manifest.json beside it, checks that this is the device and
that the models are the ones the certificate is about, builds a TensorRT engine with the device's own trtexec (or opens ONNX
Runtime, where that is the target's runtime), reads back what the engine really does, times it, and writes results.json.
Exit codes: 0 every gate passed; 1 a gate failed; 2 usage, or the folder is damaged; 3 device, runtime or tool absent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop, gate, say, sha256
from vsparse.stages.export.device.machine import describe_device, device_fault
from vsparse.stages.export.device.manifest import check_files, read_manifest
from vsparse.stages.export.device.measure_onnxruntime import measure_onnxruntime
from vsparse.stages.export.device.measure_tensorrt import measure_tensorrt
from vsparse.stages.export.device.trtexec import Trtexec, find_trtexec


def write_results(path: str, results: dict[str, Any]) -> None:
    """Writes results.json atomically: at every moment the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".results-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(results, stream, indent=2, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def measure(folder: str, out: str, root: str, any_device: bool, limit: float) -> dict[str, Any]:
    """Does everything and returns the results; raises Stop."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    device, target = describe_device(root), manifest["target"]
    fault = device_fault(device, target)
    if fault and not any_device:
        raise Stop(
            3, "this is not the target {} ({}): {}; run it there, or give --any-device".format(target["name"], target["module"], fault)
        )
    gates = [gate("device", not fault, fault or "this is the target's device")]
    results = {
        "schema_version": 1,
        "kind": "vsparse-device-results",
        "created_unix_s": int(time.time()),
        "target": target["name"],
        "contract": manifest.get("contract"),
        "certificate_sha256": manifest.get("certificate_sha256"),
        "manifest_sha256": sha256(os.path.join(folder, "manifest.json")),
        "script_sha256": sha256(os.path.abspath(__file__)),
        "device": device,
        "timing": manifest["timing"],
        "models": [],
    }
    if target["runtime"] == "tensorrt":
        tool = Trtexec(find_trtexec(root))
        results["runtime"] = {"name": "tensorrt", "version": ".".join(str(n) for n in tool.version), "tool": tool.path}
    for model in manifest["models"]:
        head = {key: model[key] for key in ("file", "role", "precision", "input", "input_shape")}
        head.update({key: model[key] for key in ("contract", "certificate_sha256") if model.get(key)})
        head["onnx_sha256"] = model["sha256"]
        if target["runtime"] == "tensorrt":
            head.update(measure_tensorrt(tool, folder, out, model, manifest, limit))
        else:
            head.update(measure_onnxruntime(folder, model, manifest["timing"]))
            results["runtime"] = {"name": "onnxruntime", "version": sys.modules["onnxruntime"].__version__}
        results["models"].append(head)
    results["gates"] = gates
    results["passed"] = all(g["passed"] is not False for g in gates + [g for m in results["models"] for g in m["gates"]])
    return results


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Builds, checks and times the models of this folder on this device; writes results.json.")
    parser.add_argument("--out", default="", help="where results.json and engines go (default: this folder)")
    parser.add_argument("--any-device", action="store_true", help="measure although this is not the target's device; the results say so")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one trtexec run may take")
    parser.add_argument("--root", default="/", help=argparse.SUPPRESS)  # the root of the device's files, for tests
    given = parser.parse_args(arguments)
    folder = os.path.dirname(os.path.abspath(__file__))
    out = os.path.abspath(given.out or folder)
    try:
        os.makedirs(out, exist_ok=True)
        results = measure(folder, out, given.root, given.any_device, given.timeout)
        write_results(os.path.join(out, "results.json"), results)
    except Stop as stop:
        say(f"run_on_device.py: {stop}")
        return stop.code
    except OSError as error:
        say(f"run_on_device.py: {error}; make room, or give --out a folder that can be written")
        return 2
    except KeyboardInterrupt:
        say("run_on_device.py: interrupted; run it again")
        return 130
    for model in results["models"]:
        latency = model["latency"]
        numbers = tuple(latency["latency_ms_" + which] for which in ("p50", "p90", "p99"))
        print(
            "{} {}: p50 {:.3f} ms, p90 {:.3f} ms, p99 {:.3f} ms over {} runs".format(
                model["file"], model["role"], *numbers, latency["runs"]
            )
        )
        for outcome in model["gates"]:
            print(
                "  {}: {} ({})".format(
                    outcome["name"], {True: "passed", False: "FAILED", None: "not examined"}[outcome["passed"]], outcome["detail"]
                )
            )
    print(("every gate passed" if results["passed"] else "A GATE FAILED") + ": " + os.path.join(out, "results.json"))
    return 0 if results["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
