"""One model through TensorRT: build, read back, probe, time."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from vsparse.stages.export.device.audit import audit
from vsparse.stages.export.device.basics import Stop, failed, gate, read_all, say, sha256
from vsparse.stages.export.device.engine_layers import layer_faults, parse_layers
from vsparse.stages.export.device.latency import latency_in_blocks, read_layer_times, read_times
from vsparse.stages.export.device.manifest import DeviceJob
from vsparse.stages.export.device.noise import note_noise
from vsparse.stages.export.device.power import energy
from vsparse.stages.export.device.trtexec import Trtexec

ROUNDS = 3
NO_THREADS = "threads are of the processor: TensorRT runs on the GPU"

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


def prepare_tensorrt(tool: Trtexec, job: DeviceJob, model: dict[str, Any], entry: dict[str, Any]) -> str:
    """Builds an engine, reads its layers back and runs the probes; returns the engine's path, and adds to the entry what was found."""
    timing, onnx = job.timing, os.path.join(job.folder, model["file"])
    fresh = os.path.join(job.scratch, os.path.splitext(model["file"])[0] + ".engine")
    shape, layer_file = shape_of(model, timing["batch"]), os.path.join(job.scratch, "l.json")
    if os.path.exists(layer_file):
        os.unlink(layer_file)
    say("building an engine of {} …".format(model["file"]))
    cache = os.path.join(job.out, "timing-{}.cache".format(".".join(str(n) for n in tool.version)))
    build, start = tool.build_options(model, onnx, fresh, layer_file, shape, cache), time.monotonic()
    tool.run(build, "build an engine from " + model["file"], job.limit)
    entry["build_s"] = time.monotonic() - start
    if not os.path.isfile(fresh) or os.path.getsize(fresh) == 0:
        raise Stop(1, "trtexec reported success but wrote no engine; look for free disk space, then run again")
    digest = sha256(fresh)
    if not os.path.isfile(layer_file):  # older trtexec skips it when it only builds
        tool.run(tool.info_options(fresh, layer_file, shape), "read the layers of the engine back", job.limit)
    layers = parse_layers(read_all(layer_file))
    contract = model_contract(model, job.manifest)
    faults = layer_faults(layers, contract, model.get("unrounded", ()))
    entry.update(
        engine_file=os.path.basename(fresh),
        engine_sha256=digest,
        engine_bytes=os.path.getsize(fresh),
        build_options=[o for o in build if not o.startswith(("--onnx", "--saveEngine", "--exportLayerInfo", "--timingCacheFile"))],
        timing_cache={"file": os.path.basename(cache), "sha256": sha256(cache)} if os.path.isfile(cache) else None,
        layers=layers,
        gates=[gate("arithmetic", not faults, "; ".join(faults[:5]) or SHOWN[contract]), audit_tensorrt(tool, job, fresh, model)],
    )
    return fresh


def time_tensorrt(
    tool: Trtexec, job: DeviceJob, engines: list[tuple[dict[str, Any], dict[str, Any], str]], meter: Any, watch: Any, progress: Any
) -> None:
    """Times engines in turns, three times each where there are several; each is (model, entry, path of the engine).

    One that fails keeps its reason in `fault`. Each engine ends in the folder of the results, and is what was timed.
    """
    rounds = ROUNDS if len(engines) > 1 else 1
    part = dict(job.timing, seconds=job.timing["seconds"] / rounds, runs=-(-int(job.timing["runs"]) // rounds))
    order, times = ["{} (tensorrt)".format(model["role"]) for model, _, _ in engines], os.path.join(job.scratch, "t.json")
    samples: list[list[list[float]]] = [[] for _ in engines]
    windows: list[list[tuple[float, float]]] = [[] for _ in engines]
    watch.timing()
    for _ in range(rounds):
        for place, (model, entry, engine) in enumerate(engines):
            if "fault" in entry:
                continue
            say("timing {} …".format(model["file"]))
            options = tool.time_options(engine, times, shape_of(model, job.timing["batch"]), part)
            try:
                done = tool.run_timed(options, "time the engine of " + model["file"], job.limit)
                found, span = read_times(times)
            except Stop as stop:
                failed(entry, stop)
                continue
            found = found[part["warmup_runs"] :] or found
            window, how = done.window(span)
            windows[place] += [window] if window else []
            samples[place].append(found)
            entry["latency"] = latency_in_blocks(samples[place])
            entry["memory"] = {"process_peak_bytes": done.peak_bytes}
            entry["time_options"] = [o for o in options if not o.startswith(("--loadEngine", "--exportTimes"))]
            entry["settings"].update(batch=job.timing["batch"], alternating_blocks_of=order, blocks=rounds)
            if job.timing["threads"] > 1:
                entry["settings"]["threads_note"] = NO_THREADS
            entry["warmup"] = {"ms": part["warmup_ms"], "runs_left_out": part["warmup_runs"], "of_each_block": True}
            entry["power"] = meter.power(windows[place], how) if meter.process is not None else None
            # The mean over the runs times the mean latency: an estimate from a meter, and called one.
            energy(entry["power"], entry["latency"]["latency_ms_mean"])
            progress()
    note_noise([entry for _, entry, _ in engines], watch.told())
    for model, entry, engine in engines:
        if "fault" in entry:
            continue
        entry["layer_times"] = time_layers(
            tool, engine, os.path.join(job.scratch, "p.json"), shape_of(model, job.timing["batch"]), job.limit
        )
        os.replace(engine, os.path.join(job.out, entry["engine_file"]))
        if sha256(os.path.join(job.out, entry["engine_file"])) != entry["engine_sha256"]:
            failed(entry, Stop(1, "the engine changed while it was timed; run again alone"))
        progress()


def shape_of(model: dict[str, Any], batch: int) -> str:
    return "{}:{}".format(model["input"], "x".join(str(n) for n in [batch] + model["input_shape"]))


def time_layers(tool: Trtexec, engine: str, profile: str, shape: str, limit: float) -> list[Any] | None:
    """Times each layer in a run of its own; None where trtexec cannot: it is nice to have, and no gate."""
    try:
        tool.run(tool.layer_options(engine, profile, shape), "time the layers", limit)
    except Stop:
        return None
    return read_layer_times(profile)


def audit_tensorrt(tool: Trtexec, job: DeviceJob, engine: str, model: dict[str, Any]) -> dict[str, Any]:
    """Runs every probe, as often in one run as that has samples, and holds each row of logits against the probe's enclosure."""
    batch = job.timing["batch"]
    if not model["probes"]:
        return gate("audit", None, "the folder holds no probes")
    shape, out, loaded = shape_of(model, batch), os.path.join(job.scratch, "o.json"), os.path.join(job.scratch, "probe.bin")
    results: list[list[list[float]]] = []
    for probe in model["probes"]:
        with open(os.path.join(job.folder, probe["file"]), "rb") as given, open(loaded, "wb") as taken:
            data = given.read()
            for _ in range(batch):
                taken.write(data)
        try:
            tool.run(
                tool.probe_options(engine, shape, "{}:{}".format(model["input"], loaded), out), "run the probe " + probe["file"], job.limit
            )
            entries = json.loads(read_all(out))
            values = [float(value) for value in next(entry["values"] for entry in entries if entry["name"] == model["output"])]
        except (ValueError, KeyError, TypeError, StopIteration, OverflowError, RecursionError) as error:
            return gate("audit", False, "trtexec wrote no readable output for {} ({!r})".format(probe["file"], error))
        if len(values) % batch:
            return gate("audit", False, "{}: {} logits for a batch of {}".format(probe["file"], len(values), batch))
        size = len(values) // batch
        results.append([values[i * size : (i + 1) * size] for i in range(batch)])
    judged = [audit(model, [rows[i] for rows in results], 1e-5) for i in range(batch)]  # trtexec prints six significant digits
    return next((one for one in judged if not one["passed"]), judged[0])
