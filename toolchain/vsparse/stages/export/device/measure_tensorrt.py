"""One model through TensorRT: build, read back, probe, time."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from typing import Any

from vsparse.stages.export.device.audit import audit
from vsparse.stages.export.device.basics import Stop, gate, read_all, say, sha256
from vsparse.stages.export.device.engine_layers import layer_faults, parse_layers
from vsparse.stages.export.device.latency import latency_of, read_layer_times, read_times
from vsparse.stages.export.device.machine import read_power, start_meter, stop_meter
from vsparse.stages.export.device.trtexec import Trtexec

SHOWN = {
    "fp32": "every layer shows fp32 without Winograd, FFT or TF32",
    "fp16": "every layer shows fp16 with sums in fp32, without Winograd or FFT",
    "fp16-tensorrt": "every layer shows fp16 or fp32 with sums in fp32, without Winograd, FFT or TF32",
    "fp16-accumulate": "every layer shows fp16 with sums in fp16 or fp32, without Winograd or FFT",
    "int8-tensorrt": "every layer shows int8 with sums in int32, or fp32, without Winograd, FFT or TF32",
}


def model_contract(model: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Returns the name of the contract that a model is certified under; the manifest's own where the model names none."""
    whole = manifest.get("contract")
    return str(model.get("contract") or (whole.get("name", "fp32") if isinstance(whole, dict) else "fp32"))


def measure_tensorrt(tool: Trtexec, folder: str, out: str, model: dict[str, Any], manifest: dict[str, Any], limit: float) -> dict[str, Any]:
    """Builds, checks, probes and times one model; the engine stays in `out`."""
    timing, rails = manifest["timing"], manifest["target"]["power_rails"]
    onnx = os.path.join(folder, model["file"])
    engine = os.path.join(out, os.path.splitext(model["file"])[0] + ".engine")
    shape = "{}:{}".format(model["input"], "x".join(str(n) for n in [timing["batch"]] + model["input_shape"]))
    with tempfile.TemporaryDirectory(dir=out, prefix=".vsparse-") as scratch:
        fresh, layer_file, times, log = (os.path.join(scratch, n) for n in ("m.engine", "l.json", "t.json", "tegrastats.log"))
        say(f"building {engine} …")
        cache = os.path.join(out, "timing-{}.cache".format(".".join(str(n) for n in tool.version)))
        build, start = tool.build_options(model, onnx, fresh, layer_file, shape, cache), time.monotonic()
        tool.run(build, "build an engine from " + model["file"], limit)
        build_s = time.monotonic() - start
        if not os.path.isfile(fresh) or os.path.getsize(fresh) == 0:
            raise Stop(1, "trtexec reported success but wrote no engine; look for free disk space, then run again")
        digest = sha256(fresh)
        if not os.path.isfile(layer_file):  # older trtexec skips it when it only builds
            tool.run(tool.info_options(fresh, layer_file, shape), "read the layers of the engine back", limit)
        layers = parse_layers(read_all(layer_file))
        contract = model_contract(model, manifest)
        faults = layer_faults(layers, contract, model.get("unrounded", ()))
        audit = audit_tensorrt(tool, folder, scratch, fresh, model, timing, limit)
        say("timing {} …".format(model["file"]))
        options = tool.time_options(fresh, times, shape, timing)
        meter = start_meter(log) if rails else None
        start = time.monotonic()
        try:
            tool.run(options, "time the engine of " + model["file"], limit)
        finally:
            stop_meter(meter)
        samples = read_times(times)
        power = read_power(read_all(log), rails) if meter else None
        layer_times = time_layers(tool, fresh, os.path.join(scratch, "p.json"), shape, limit)
        os.replace(fresh, engine)
    if sha256(engine) != digest:
        raise Stop(1, "the engine changed while it was timed; run again alone")
    if power:
        # The mean over the run, warm-up included, times the mean latency: an estimate from a meter, and called one.
        power["energy_mj_per_run_estimate"] = power["power_mw_mean"] * math.fsum(samples.kept) / len(samples.kept) / 1000
    return {
        "engine_file": os.path.basename(engine),
        "engine_sha256": digest,
        "engine_bytes": os.path.getsize(engine),
        "build_s": build_s,
        "build_options": [o for o in build if not o.startswith(("--onnx", "--saveEngine", "--exportLayerInfo", "--timingCacheFile"))],
        "timing_cache": {"file": os.path.basename(cache), "sha256": sha256(cache)} if os.path.isfile(cache) else None,
        "time_options": [o for o in options if not o.startswith(("--loadEngine", "--exportTimes"))],
        "layers": layers,
        "layer_times": layer_times,
        "gates": [
            gate("arithmetic", not faults, "; ".join(faults[:5]) or SHOWN[contract]),
            audit,
        ],
        "latency": latency_of(samples),
        "power": power,
    }


def time_layers(tool: Trtexec, engine: str, profile: str, shape: str, limit: float) -> list[Any] | None:
    """Times each layer in a run of its own; None where trtexec cannot: it is nice to have, and no gate."""
    try:
        tool.run(tool.layer_options(engine, profile, shape), "time the layers", limit)
    except Stop:
        return None
    return read_layer_times(profile)


def audit_tensorrt(
    tool: Trtexec, folder: str, scratch: str, engine: str, model: dict[str, Any], timing: dict[str, Any], limit: float
) -> dict[str, Any]:
    if not model["probes"] or timing["batch"] != 1:
        return gate("audit", None, "the folder holds no probes for this batch")
    shape = "{}:{}".format(model["input"], "x".join(str(n) for n in [1] + model["input_shape"]))
    results = []
    for probe in model["probes"]:
        out = os.path.join(scratch, "o.json")
        loads = "{}:{}".format(model["input"], os.path.join(folder, probe["file"]))
        try:
            tool.run(tool.probe_options(engine, shape, loads, out), "run the probe " + probe["file"], limit)
            entries = json.loads(read_all(out))
            values = next(entry["values"] for entry in entries if entry["name"] == model["output"])
            results.append([float(value) for value in values])
        except (ValueError, KeyError, TypeError, StopIteration, OverflowError, RecursionError) as error:
            return gate("audit", False, "trtexec wrote no readable output for {} ({!r})".format(probe["file"], error))
    return audit(model, results, 1e-5)  # trtexec prints six significant digits
