"""The forms that take turns: each opened, run on its probes and held against their enclosures; then timed, and metered alone."""

from __future__ import annotations

import os
import sys
from math import prod
from typing import Any

from vsparse.stages.export.device.audit import audit
from vsparse.stages.export.device.basics import Stop, failed, gate, say
from vsparse.stages.export.device.c_harness import compile_layers, compile_source
from vsparse.stages.export.device.certify import audited
from vsparse.stages.export.device.engine_layers import layer_faults
from vsparse.stages.export.device.forms import Form, Worker, alternate, meter_alone
from vsparse.stages.export.device.manifest import DeviceJob
from vsparse.stages.export.device.measure_tensorrt import NO_THREADS, SHOWN, model_contract
from vsparse.stages.export.device.noise import note_noise
from vsparse.stages.export.device.power import energy


class Group:
    """The forms of a run that are in processes of their own."""

    def __init__(self, job: DeviceJob) -> None:
        self.job = job
        self.forms: list[Form] = []
        self.workers: list[Worker] = []

    def worker(self, what: str, kind: str) -> Worker:
        log = os.path.join(self.job.scratch, f"{len(self.workers)}.log")
        worker = Worker(what, kind, log, self.job.limit)
        self.workers.append(worker)
        return worker

    def add(self, entry: dict[str, Any], step: Any, given: dict[str, Any]) -> None:
        """Opens a form and audits it; what fails stands in its entry."""
        try:
            self.forms.append(step(entry, given))
        except Stop as stop:
            failed(entry, stop)

    def onnxruntime(self, entry: dict[str, Any], model: dict[str, Any]) -> Form:
        """Opens a model, or the file that certifies its own input, in ONNX Runtime, and runs its probes."""
        job, certifies = self.job, "epsilon" in model
        worker = self.worker("{} in ONNX Runtime {}".format(model["file"], entry["runtime"]["version"]), "onnxruntime")
        threads, batch = job.timing["threads"], 1 if certifies else job.timing["batch"]
        entry["settings"] = {"threads_intra_op": threads, "threads_inter_op": 1, "batch": batch}
        opening = {key: model[key] for key in ("input", "input_shape")}
        opening.update(path=os.path.join(job.folder, model["file"]), threads=threads, batch=batch)
        opening["outputs"] = [model[name] for name in ("logits", "predicted", "margin")] if certifies else [model["output"]]
        if certifies:
            opening["epsilon"] = model["epsilon"]
        form = Form(entry, worker, opening)
        form.layered = lambda: {"profile": os.path.join(job.scratch, "profile")}
        results = [
            worker.ask(do="probe", path=os.path.join(job.folder, one["file"]), epsilon=one.get("epsilon"))["values"]
            for one in model["probes"]
        ]
        if certifies:
            refused = worker.ask(do="refuses")["refuses"]
            entry["gates"] = [
                audited(model, results, 0.0),
                gate("refusal", refused, "NaN, infinite and negative radii, and NaN inputs, get no bound"),
            ]
        else:
            entry["gates"] = [audit_of(model, results)]
        return form

    def tensorrt(self, entry: dict[str, Any], model: dict[str, Any]) -> Form:
        """Builds an engine by the tensorrt module, reads its layers back, and runs the probes."""
        job, batch = self.job, self.job.timing["batch"]
        worker = self.worker("{} in TensorRT {}".format(model["file"], entry["runtime"]["version"]), "tensorrt")
        engine = os.path.splitext(model["file"])[0] + ".engine"
        entry["settings"] = {"batch": batch, **({"threads_note": NO_THREADS} if job.timing["threads"] > 1 else {})}
        opening = {key: model.get(key) for key in ("input", "input_shape", "output", "structured_sparsity")}
        opening.update(path=os.path.join(job.folder, model["file"]), engine=os.path.join(job.out, engine), batch=batch)
        form = Form(entry, worker, opening)
        entry["engine_file"] = engine
        entry.update({key: entry["settings"].pop(key) for key in ("layers", "engine_sha256", "engine_bytes")})
        results = [worker.ask(do="probe", path=os.path.join(job.folder, one["file"]))["values"] for one in model["probes"]]
        contract = model_contract(model, job.manifest)
        faults = layer_faults(entry["layers"], contract, model.get("unrounded", ()))
        entry["gates"] = [gate("arithmetic", not faults, "; ".join(faults[:5]) or SHOWN[contract]), audit_of(model, results)]
        return form

    def c(self, entry: dict[str, Any], source: dict[str, Any]) -> Form:
        """Compiles a network in C, or takes the library that was delivered, and runs its probes."""
        job, asked = self.job, self.job.timing["threads"]
        made = compile_source(job.folder, job.scratch, source, asked, job.limit)
        parallel = "-fopenmp" in made["options"]
        entry["runtime"]["version"] = made["compiler"]
        entry["settings"] = {"threads_intra_op": asked if parallel else 1, "threads_inter_op": 1, "batch": job.timing["batch"]}
        entry["settings"].update({key: made[key] for key in ("compiler", "options", "compiled", "library_sha256") if key in made})
        if asked > 1 and not parallel:
            why = (
                "the int8 text has no threads" if source["precision"] == "int8" else "the compiler has no OpenMP, or compiled it elsewhere"
            )
            entry["settings"]["threads_note"] = f"{asked} threads were asked for: {why}"
            say("{}: one thread, not {} ({})".format(source["file"], asked, why))
        worker = self.worker(source["file"], "c")
        opening = {"library": made["library"], "prefix": source["prefix"], "inputs": prod(source["input_shape"])}
        form = Form(entry, worker, dict(opening, classes=source["classes"], batch=job.timing["batch"]))
        form.layered = lambda: compile_layers(job.folder, job.scratch, source, made["options"], job.limit)
        results = [worker.ask(do="probe", path=os.path.join(job.folder, one["file"]))["values"] for one in source["probes"]]
        entry["gates"] = [audit_of(source, results)]
        return form

    def time(self, meter: Any, watch: Any, progress: Any) -> None:
        """Times all forms in turns, says what made that noisy, and then runs each alone for the meter, where there is one."""
        if not self.forms:
            return
        say("timing in turns: {} …".format(", ".join("{} ({})".format(f.entry["role"], f.entry["runtime"]["name"]) for f in self.forms)))
        watch.timing()
        alternate(self.forms, self.job.timing, progress)
        note_noise([form.entry for form in self.forms], watch.told())
        for form in self.forms:
            if form.fault:
                failed(form.entry, Stop(1, form.fault))
                continue
            try:
                form.entry["power"] = meter_alone(form, meter, min(3.0, max(0.5, self.job.timing["seconds"])))
            except Stop as stop:
                say(str(stop))
                form.entry["power"] = None
            if form.entry["power"] is not None:
                energy(form.entry["power"], form.entry["power"]["ms_per_run"])
        progress()

    def time_layers(self, progress: Any) -> None:
        """Times the layers of each form by itself; where that cannot be done, its entry says why."""
        for form in self.forms:
            if form.fault or form.layered is None:
                continue
            say("timing the layers of {} ({}) …".format(form.entry["role"], form.entry["runtime"]["name"]))
            try:
                form.entry["layer_times"] = form.worker.ask(do="layers", **form.layered())["rows"]
            except Stop as stop:
                form.entry["layer_times"], form.entry["layer_times_note"] = None, str(stop)
                say(str(stop))
        progress()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def audit_of(entry: dict[str, Any], results: list[list[float]]) -> dict[str, Any]:
    return audit(entry, results, 0.0) if results else gate("audit", None, "the folder holds no probes")


def onnxruntime_fault(found: dict[str, Any]) -> Stop | None:
    """Why ONNX Runtime cannot be used here; None where it can."""
    for name in ("onnxruntime", "numpy"):
        if found[name]["version"] is None:
            reason = found[name]["reason"]
            return Stop(3, f"{sys.executable} does not import {name} ({reason}); `pip install {name}`, then run again")
    return None
