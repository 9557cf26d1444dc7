"""Runs, checks and times every form in this folder on the device it was copied to: `python3 agent.py`.

One file, standard library only, Python 3.8 or newer. It reads manifest.json beside it, checks that this is the device and
that the files are the ones the certificates are about, and runs each with what is there: ONNX Runtime, TensorRT (trtexec),
and the C, compiled here. It holds logits against their certified enclosures, reads back what an engine really does, times all
forms in turns, reads power, temperature and clocks, and writes results.json; what was measured so far is always in
results.partial.json.
Exit codes: 0 every gate passed; 1 a gate failed; 2 usage, or the folder is damaged; 3 device, runtime or tool absent.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

from vsparse.stages.export.device.basics import INHERITED, Stop, clean, failed, gate, say, set_aside, sha256
from vsparse.stages.export.device.certify import certify_tensorrt, read_certifying
from vsparse.stages.export.device.facts import describe_device, describe_runtimes, device_fault
from vsparse.stages.export.device.group import Group, onnxruntime_fault
from vsparse.stages.export.device.manifest import DeviceJob, check_files, read_manifest, timing_of
from vsparse.stages.export.device.measure_tensorrt import SHOWN, model_contract, prepare_tensorrt, time_tensorrt
from vsparse.stages.export.device.power import Meter
from vsparse.stages.export.device.sensors import Watch
from vsparse.stages.export.device.tensorrt_module import TensorrtOf
from vsparse.stages.export.device.trtexec import Trtexec, find_trtexec
from vsparse.stages.export.device.worker import COf, OnnxRuntimeOf, work

RUNTIMES = ("onnxruntime", "tensorrt", "c")
KINDS = {"c": COf, "onnxruntime": OnnxRuntimeOf, "tensorrt": TensorrtOf}
MISSING = {"version": None, "reason": "it was not looked for"}


class Signalled(KeyboardInterrupt):
    """A signal asked the run to end."""


class Run:
    """One run: what it was given, what it found so far, and where that is written."""

    def __init__(self, folder: str, out: str, given: Any) -> None:
        self.folder, self.out, self.given = folder, out, given
        self.manifest = read_manifest(folder)
        check_files(folder, self.manifest)
        self.certifying = read_certifying(folder, self.manifest, given.certify)[: 1 if given.certify else None]
        asked = {"runs": given.runs, "seconds": given.seconds, "threads": given.threads, "batch": given.batch, "warmup_runs": given.warmup}
        self.timing, self.target = timing_of(self.manifest, asked), self.manifest["target"]
        self.device = describe_device(given.root)
        self.fault = device_fault(self.device, self.target)
        if self.fault and not given.any_device:
            told = "this is not the target {} ({}): {}; run it there, or give --any-device"
            raise Stop(3, told.format(self.target["name"], self.target["module"], self.fault))
        self.results: dict[str, Any] = {
            "schema_version": 1,
            "kind": "vsparse-device-results",
            "created_unix_s": int(time.time()),
            "complete": False,
            "target": self.target["name"],
            "contract": self.manifest.get("contract"),
            "certificate_sha256": self.manifest.get("certificate_sha256"),
            "manifest_sha256": sha256(os.path.join(folder, "manifest.json")),
            "script_sha256": sha256(os.path.abspath(__file__)),
            "device": self.device,
            "timing": self.timing,
            "asked": {
                "runtime": given.runtime,
                **({"layers": True} if given.layers else {}),
                **{key: value for key, value in asked.items() if value is not None},
            },
            "models": [],
            "further": [],
            "skipped": [],
            "gates": [gate("device", not self.fault, self.fault or "this is the target's device")],
            "passed": False,
        }

    def wants(self, runtime: str) -> bool:
        return self.given.runtime in (None, runtime)

    def entry(self, model: dict[str, Any], runtime: str, version: str | None) -> dict[str, Any]:
        """Adds an entry: among `models` where it is a model in the target's own runtime, and else among `further`."""
        is_onnx, certifies = "files" not in model, "epsilon" in model
        own = is_onnx and runtime == self.target["runtime"]
        head = {"role": model.get("role", "certifying") if certifies else model["role"]}
        head.update(
            {key: model[key] for key in ("file", "precision", "input", "input_shape", "contract", "certificate_sha256") if model.get(key)}
        )
        head["onnx_sha256" if is_onnx else "source_sha256"] = model["sha256"]
        # Only what is deployed so counts: an ONNX file in another runtime than the target's is measured for comparison.
        head.update(runtime={"name": runtime, "version": version}, deployed=own or not is_onnx, settings={}, gates=[], power=None)
        self.results["models" if own and not certifies else "further"].append(head)
        return head

    def tensorrt(self, job: DeviceJob, tool: Trtexec, meter: Any, watch: Watch) -> None:
        version, engines = ".".join(str(n) for n in tool.version), []
        own = self.target["runtime"] == "tensorrt"
        for model in [] if self.given.certify else self.manifest["models"]:
            contract = model_contract(model, self.manifest)
            if not own and contract not in SHOWN:
                self.skip(model["role"], "tensorrt", f"an engine's layers cannot show the contract {contract}")
                continue
            entry = self.entry(model, "tensorrt", version)
            try:
                engines.append((model, entry, prepare_tensorrt(tool, job, model, entry)))
            except Stop as stop:
                failed(entry, stop)
            self.write()
        time_tensorrt(tool, job, engines, meter, watch, self.write)
        for one in self.certifying if own else []:
            entry = self.entry(one, "tensorrt", version)
            try:
                entry.update(certify_tensorrt(tool, job, one))
            except Stop as stop:
                failed(entry, stop)

    def skip(self, role: str, runtime: str, reason: str) -> None:
        self.results["skipped"].append({"role": role, "runtime": runtime, "reason": clean(reason)})
        say(f"{role} ({runtime}) is left out: {reason}")

    def group(self, job: DeviceJob, group: Group, runtimes: dict[str, Any], meter: Any, watch: Watch) -> None:
        fault = onnxruntime_fault(runtimes)
        for model in self.manifest["models"] + self.certifying:
            if not self.wants("onnxruntime") or (self.given.certify and model not in [*self.certifying, self.manifest["models"][0]]):
                continue
            if fault is not None:
                self.skip(model.get("role", "certifying"), "onnxruntime", str(fault))
                continue
            self.try_form(group, model, "onnxruntime", runtimes["onnxruntime"]["version"], group.onnxruntime)
        for source in self.manifest["c_sources"]:
            if self.wants("c") and not self.given.certify:
                self.try_form(group, source, "c", None, group.c)
        self.write()
        group.time(meter, watch, self.write)
        if self.given.layers:
            group.time_layers(self.write)

    def try_form(self, group: Group, model: dict[str, Any], runtime: str, version: str | None, step: Any) -> None:
        """Opens a form; where something is not there that it needs, that is no fault of it, unless the target needs it too."""
        entry = self.entry(model, runtime, version)
        group.add(entry, step, model)
        if entry.get("fault_code") == 3 and entry in self.results["further"]:
            self.results["further"].remove(entry)
            self.skip(entry["role"], runtime, entry["fault"])

    def by_module(self, group: Group, version: str) -> None:
        """Opens the models by the tensorrt module, where there is no trtexec."""
        for model in self.manifest["models"]:
            contract = model_contract(model, self.manifest)
            if contract in SHOWN:
                self.try_form(group, model, "tensorrt", version, group.tensorrt)
            else:
                self.skip(model["role"], "tensorrt", f"an engine's layers cannot show the contract {contract}")
        for one in self.certifying:
            self.skip(one.get("role", "certifying"), "tensorrt", "the file that certifies its own input needs trtexec")

    def measure(self) -> None:
        """Does everything; at its end raises Stop where the target's runtime is missing, or a model does not run in it."""
        given, own = self.given, self.target["runtime"]
        set_aside(self.out, "results-certify.json" if given.certify else "results.json")
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".vsparse-") as scratch:
            job = DeviceJob(self.folder, self.manifest, self.out, scratch, self.timing, given.timeout)
            tool: Trtexec | None = None
            missing: dict[str, Stop | None] = {}
            if self.wants("tensorrt"):
                try:
                    tool = Trtexec(find_trtexec(given.root))
                except Stop as stop:
                    missing["tensorrt"] = stop
            runtimes = self.results["runtimes"] = describe_runtimes(None if tool is None else tool.path)
            found, module = runtimes["onnxruntime"]["version"], runtimes["tensorrt"]["version"]
            if tool is None and module is not None and self.wants("tensorrt"):
                del missing["tensorrt"]
                self.results["runtime"] = {"name": "tensorrt", "version": module, "tool": "the tensorrt module"}
            if own == "tensorrt" and tool is not None:
                self.results["runtime"] = {"name": "tensorrt", "version": ".".join(str(n) for n in tool.version), "tool": tool.path}
            missing["onnxruntime"] = onnxruntime_fault(runtimes)
            if own == "onnxruntime":
                self.results["runtime"] = {"name": "onnxruntime", "version": found}
            self.write()
            watch = Watch(given.root)
            idle_s = min(2.0, max(0.3, self.timing["seconds"] / 5))
            meter, group = Meter(os.path.join(scratch, "tegrastats.log"), self.target["power_rails"], idle_s), Group(job)
            try:
                self.results["idle"] = meter.idle
                if tool is not None and (own == "tensorrt" or not given.certify):
                    self.tensorrt(job, tool, meter, watch)
                elif module is not None and self.wants("tensorrt") and not given.certify:
                    self.by_module(group, module)
                self.group(job, group, runtimes, meter, watch)
            finally:
                group.close()
                meter.close()
                watch.end()
                self.results["conditions"] = watch.told()
                self.write()
        for entry in self.results["models"] if self.wants(own) else []:
            if "fault" in entry:
                raise Stop(entry["fault_code"], entry["fault"])
        absent = missing.get(given.runtime or own)
        if absent is not None:
            raise absent
        if not (self.results["models"] or self.results["further"]):
            reasons = "; ".join("{} ({reason})".format(one["role"], **one) for one in self.results["skipped"]) or "nothing was asked for"
            raise Stop(3, f"nothing could be run here: {reasons}")

    def write(self) -> None:
        """Writes what there is, in one step."""
        counted = [one for entry in self.entries() if entry["deployed"] for one in entry["gates"]]
        self.results["passed"] = all(one["passed"] is not False for one in counted + self.results["gates"])
        write_json(os.path.join(self.out, "results.partial.json"), self.results)

    def finish(self) -> str:
        self.results["complete"] = True
        for entry in self.entries():
            entry.pop("fault_code", None)
        self.write()
        path = os.path.join(self.out, "results.json")
        os.replace(os.path.join(self.out, "results.partial.json"), path)
        return path

    def entries(self) -> list[dict[str, Any]]:
        return list(self.results["models"] + self.results["further"])


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes a document atomically: at every moment the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".results-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=None, separators=(",", ":"), allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def certifying_results(run: Run) -> dict[str, Any]:
    """Returns results-certify.json: the file that certifies its own input, beside inference."""
    entry = next((one for one in run.results["further"] if one["role"] == "certifying"), None)
    if entry is None or "latency" not in entry:
        raise Stop(entry["fault_code"], entry["fault"]) if entry else Stop(3, run.results["skipped"][0]["reason"])
    heads = ("schema_version", "created_unix_s", "target", "manifest_sha256", "script_sha256", "device", "timing")
    found = {key: run.results[key] for key in heads}
    found.update({key: entry[key] for key in ("file", "onnx_sha256", "runtime", "settings", "memory", "latency") if key in entry})
    found.update({key: entry[key] for key in ("engine_file", "engine_sha256") if key in entry})
    found.update(kind="vsparse-certifying-results", gates=run.results["gates"] + entry["gates"])
    beside = next((one for one in run.entries() if one is not entry and "latency" in one), None)
    if beside is not None:
        found["inference_latency"] = beside["latency"]
        found["ratio_of_medians"] = entry["latency"]["latency_ms_p50"] / beside["latency"]["latency_ms_p50"]
    found["passed"] = all(one["passed"] is not False for one in found["gates"])
    return found


def options() -> Any:
    parser = argparse.ArgumentParser(description="Runs, checks and times every form in this folder on this device; writes results.json.")
    parser.add_argument("--out", default="", help="where results.json and engines go (default: this folder)")
    parser.add_argument("--any-device", action="store_true", help="measure although this is not the target's device; the results say so")
    parser.add_argument("--runtime", choices=RUNTIMES, help="only this one (default: every one that is here)")
    parser.add_argument("--runs", type=number(int, 1, 10**6), help="least number of timed runs (default: as the folder says)")
    parser.add_argument("--seconds", type=number(float, 0, 3600), help="least time of them (default: as the folder says)")
    parser.add_argument(
        "--warmup", type=number(int, 0, 10**6), help="least number of runs before them (default: a time, as the folder says)"
    )
    parser.add_argument("--threads", type=number(int, 1, 256), help="threads of ONNX Runtime and of the float32 C")
    parser.add_argument("--batch", type=number(int, 1, 65536), help="samples of one run")
    parser.add_argument("--timeout", type=number(float, 1, 10**6), default=1800.0, help="seconds that one step may take (default: 1800)")
    parser.add_argument("--layers", action="store_true", help="also time each layer in ONNX Runtime and in C (TensorRT's always are)")
    parser.add_argument("--certify", action="store_true", help="only the file that certifies its own input: writes results-certify.json")
    parser.add_argument("--root", default="/", help=argparse.SUPPRESS)  # the root of the device's files, for tests
    parser.add_argument("--watched", default="", help=argparse.SUPPRESS)  # a folder to remove when the standard input ends
    parser.add_argument("--inherit", type=int, default=-1, help=argparse.SUPPRESS)  # a lock that every process of the run holds
    return parser


def number(kind: Any, least: float, most: float) -> Any:
    def read(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return value

    read.__name__ = "number"
    return read


def watch_input(folder: str) -> None:
    """Ends everything once who started this is gone, and removes its folder."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        for _ in range(100):  # what another process writes meanwhile stays, and is taken the next time
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.02)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def lock(folder: str) -> None:
    """Refuses to measure beside another agent in a folder; every process of the run holds the lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Stop(3, f"another agent is measuring in {folder}; wait until it has ended") from None
    except OSError:
        pass  # a file system without locks
    INHERITED.append(handle)


def end(number: int, frame: Any) -> None:
    raise Signalled


def main(arguments: list[str]) -> int:
    warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons say so of each process that is started beside a thread
    if arguments == ["--worker"]:
        return work(KINDS)
    given = options().parse_args(arguments)
    if given.watched:
        watch_input(given.watched)
    if given.inherit >= 0:
        INHERITED.append(given.inherit)
    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, end)
    folder = os.path.dirname(os.path.abspath(__file__))
    out = os.path.abspath(given.out or folder)
    partial = os.path.join(out, "results.partial.json")
    run: Run | None = None
    try:
        os.makedirs(out, exist_ok=True)
        lock(out)
        run = Run(folder, out, given)
        run.measure()
        if given.certify:
            results = certifying_results(run)
            path = os.path.join(out, "results-certify.json")
            write_json(path, results)
            os.unlink(partial)
            told = [results]
        else:
            path, results, told = run.finish(), run.results, [one for one in run.entries() if "latency" in one]
    except Stop as stop:
        kept = f" (what was measured is in {partial})" if run is not None and os.path.exists(partial) and not given.watched else ""
        say(f"agent.py: {stop}{kept}")
        return stop.code
    except OSError as error:
        place = "--remote-dir a folder with room" if given.watched else "--out a folder that can be written"
        say(f"agent.py: {error}; make room there, or give {place}")
        return 3
    except KeyboardInterrupt:
        say(f"agent.py: interrupted; {partial} holds what was measured; run it again")
        return 130
    show(results, told)
    print(("every gate passed" if results["passed"] else "A GATE FAILED") + ": " + path)
    return 0 if results["passed"] else 1


def show(results: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        latency = entry["latency"]
        name = "{} {} ({})".format(entry["file"], entry.get("role", ""), entry["runtime"]["name"])
        numbers = tuple(milliseconds(latency["latency_ms_" + which]) for which in ("p50", "p90", "p99", "max"))
        print("{}: p50 {} ms, p90 {} ms, p99 {} ms, max {} ms over {} runs".format(name, *numbers, latency["runs_timed"]))
        if entry.get("noise"):
            print("  NOISY: {}".format("; ".join(one["detail"] for one in entry["noise"])))
        for one in entry["gates"]:
            word = {True: "passed", False: "FAILED", None: "not examined"}[one["passed"]]
            print("  {}: {} ({})".format(one["name"], word, one["detail"]))
    if "ratio_of_medians" in results:
        print("{:.2f} of inference".format(results["ratio_of_medians"]))
    for one in results.get("skipped", []):
        print("{} ({}): left out, {}".format(one["role"], one["runtime"], one["reason"]))


def milliseconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
