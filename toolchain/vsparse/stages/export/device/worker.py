"""One form in a process of its own: loaded, run on probes and timed in blocks, as the agent asks over a pipe.

So a form that crashes or takes all memory ends alone, its peak memory is its own, and forms take turns.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import os
import re
import resource
import sys
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop, read_text
from vsparse.stages.export.device.latency import MOST_RUNS, timed_block
from vsparse.stages.export.device.layer_times import layer_rows, layered_runs, onnxruntime_rows

READINGS = 20


def status_bytes(field: str) -> int | None:
    found = re.search(rf"^{field}:\s*(\d{{1,15}}) kB", read_text("/proc/self/status"), re.M)
    return int(found.group(1)) * 1024 if found else None


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def probe_values(path: str) -> Any:
    """Reads an input of little-endian float32 numbers as a ctypes array."""
    with open(path, "rb") as stream:
        data = stream.read(1 << 30)
    values = (ctypes.c_float * (len(data) // 4)).from_buffer_copy(data[: len(data) // 4 * 4])
    return values if sys.byteorder == "little" else swapped(data)


def swapped(data: bytes) -> Any:
    words = b"".join(data[i : i + 4][::-1] for i in range(0, len(data) // 4 * 4, 4))
    return (ctypes.c_float * (len(data) // 4)).from_buffer_copy(words)


def uniform(count: int) -> Any:
    """Numbers in [0, 1) from a fixed seed (a linear congruential generator), without numpy: the input that C is timed with."""
    state, values = 1, (ctypes.c_float * count)()
    for i in range(count):
        state = (state * 1103515245 + 12345) % (1 << 31)
        values[i] = state / (1 << 31)
    return values


class COf:
    """A compiled network in C."""

    def __init__(self, given: dict[str, Any]) -> None:
        library = ctypes.CDLL(given["library"])
        self.call, self.timer = getattr(library, given["prefix"] + "_logits"), library.vsparse_agent_time
        self.call.restype, self.timer.restype, self.group = None, ctypes.c_longlong, 1
        self.inputs, self.classes, self.batch = given["inputs"], given["classes"], given["batch"]
        self.x, self.y = uniform(self.inputs * self.batch), (ctypes.c_float * (self.classes * self.batch))()
        library.vsparse_agent_clock.restype = ctypes.c_longlong
        self.settings = {
            "input": "uniform in [0, 1), a fixed seed, the same for every run",
            "call": given["prefix"] + "_logits",
            "clock_reading_ns": library.vsparse_agent_clock(),
        }
        self.least = 1.0  # ns of a sample, so that a turn's samples have room
        self.choose_group()

    def probe(self, given: dict[str, Any]) -> Any:
        x = probe_values(given["path"])
        if len(x) != self.inputs:
            raise ValueError(f"the probe has {len(x)} numbers, not {self.inputs}")
        logits = (ctypes.c_float * self.classes)()
        self.call(x, logits)
        return list(logits)

    def time(self, runs: int, turn_ns: int, lead_ns: int) -> list[int]:
        capacity = max(runs, min(MOST_RUNS, int(2 * turn_ns / max(self.least, 1)) + 1024))
        samples = (ctypes.c_longlong * capacity)()
        sizes = [ctypes.c_int(n) for n in (self.inputs, self.classes, self.batch, self.group)]
        found = self.timer(self.x, self.y, *sizes, *map(ctypes.c_longlong, (runs, turn_ns, lead_ns, capacity)), samples)
        return [(ns + self.group // 2) // self.group for ns in samples[:found]]

    def choose_group(self) -> None:
        """Makes a sample of as many runs as last twenty readings of the clock, so that one costs 5 % of it at most."""
        self.least = min(self.time(20, 0, 1000000))
        while self.group < 1024 and self.least < READINGS * self.settings["clock_reading_ns"]:
            self.group *= 2
            self.least = min(ns * self.group for ns in self.time(20, 0, 0))
        self.settings["runs_per_sample"] = self.group

    def layers(self, given: dict[str, Any]) -> Any:
        """Times each layer in a library that reads the clock between them; it must compute the same bits."""
        library, titles = ctypes.CDLL(given["library"]), given["titles"]
        runs, logits = layered_runs(self.least / self.group), (ctypes.c_float * self.classes)()
        times = (ctypes.c_longlong * (runs * len(titles)))()
        for count in (max(1, runs // 10), runs):
            ctypes.memset(times, 0, ctypes.sizeof(times))
            library.vsparse_agent_layers(self.x, logits, ctypes.c_int(count), ctypes.c_int(len(titles)), times)
        self.call(self.x, self.y)
        if bytes(logits) != bytes(self.y)[: ctypes.sizeof(logits)]:
            raise Stop(1, "the copy that times layers computes other logits, so that nothing is told of layers")
        rows = [(title, "", [times[run * len(titles) + i] / 1e6 for run in range(runs)]) for i, title in enumerate(titles)]
        return layer_rows([row for row in rows if any(row[2])])  # the text for other processors is in the same file


class OnnxRuntimeOf:
    """A model in ONNX Runtime on the processor, one of those that certify their own input included."""

    def __init__(self, given: dict[str, Any]) -> None:
        import numpy

        self.numpy, self.given = numpy, given
        self.session = self.opened("")
        self.input, self.outputs, self.shape = given["input"], given["outputs"], given["input_shape"]
        self.epsilon = given.get("epsilon")
        self.feed = {self.input: numpy.random.default_rng(0).random([given["batch"], *self.shape], dtype=numpy.float32)}
        if self.epsilon:
            self.feed[self.epsilon] = numpy.array(0.0, numpy.float32)
        self.session.run(self.outputs, self.feed)
        self.settings = {
            "providers": self.session.get_providers(),
            "spinning": False,
            "graph_optimization_level": "all",
            "input": "uniform in [0, 1), seed 0, the same for every run",
        }

    def opened(self, profile: str) -> Any:
        """Returns a session; `profile`: how the name of the file begins that its profiler writes."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.given["threads"], 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return onnxruntime.InferenceSession(self.given["path"], options, providers=["CPUExecutionProvider"])

    def layers(self, given: dict[str, Any]) -> Any:
        """Times each kernel by ONNX Runtime's own profiler, in a session of its own."""
        once = functools.partial(self.session.run, self.outputs, self.feed)
        runs = layered_runs(min(timed_block(once, 5, 0, 0)))
        session = self.opened(given["profile"])
        for _ in range(runs):
            session.run(self.outputs, self.feed)
        path = session.end_profiling()
        try:
            return onnxruntime_rows(path)
        finally:
            os.unlink(path)

    def probe(self, given: dict[str, Any]) -> Any:
        x = self.numpy.array(probe_values(given["path"]), dtype=self.numpy.float32).reshape([1, *self.shape])
        return self.values(x, given.get("epsilon"))

    def values(self, x: Any, epsilon: Any) -> Any:
        if not self.epsilon:
            return [float(v) for v in self.session.run(self.outputs, {self.input: x})[0].reshape(-1)]
        radius = self.numpy.array(epsilon, self.numpy.float32)
        logits, predicted, margin = self.session.run(self.outputs, {self.input: x, self.epsilon: radius})
        return [float(v) for v in logits.reshape(-1)], int(predicted[0]), float(margin[0])

    def refuses(self) -> bool:
        """Whether no radius that is none, and no input that is none, gets a bound."""
        x = self.numpy.random.default_rng(0).random([1, *self.shape], dtype=self.numpy.float32)
        none = [self.values(x, epsilon)[2] for epsilon in (float("nan"), -1.0, float("inf"))]
        return all(one == -math.inf for one in [*none, self.values(x * self.numpy.float32("nan"), 0.0)[2]])

    def time(self, runs: int, turn_ns: int, lead_ns: int) -> list[int]:
        return timed_block(functools.partial(self.session.run, self.outputs, self.feed), runs, turn_ns, lead_ns)


def answer(form: Any, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["do"] == "probe":
        return {"values": form.probe(asked)}
    if asked["do"] == "refuses":
        return {"refuses": form.refuses()}
    if asked["do"] == "layers":
        return {"rows": form.layers(asked)}
    start, had = time.monotonic(), time.process_time()
    samples = form.time(asked["runs"], asked["turn_ns"], asked["lead_ns"])
    end, cpu_s = time.monotonic(), time.process_time() - had
    return {"samples_ns": samples, "start": start, "end": end, "cpu_s": cpu_s, "peak_bytes": peak_bytes()}


def work(kinds: dict[str, Any]) -> int:
    """Answers one line of JSON by another, until the agent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    form: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "open":
                form, before = None, status_bytes("VmRSS")
                form = kinds[asked["kind"]](asked)
                found = {"settings": form.settings, "process_bytes_before": before, "peak_bytes": peak_bytes()}
            else:
                found = answer(form, asked)
        except MemoryError:
            found = {"error": "it does not fit into memory"}
        except Stop as stop:
            found = {"error": str(stop), "code": stop.code}
        except Exception as error:  # a runtime's exceptions share no base class but Exception
            found = {"error": "{}: {}".format(type(error).__name__, (str(error).splitlines() or [""])[0])}
        replies.write(json.dumps(found) + "\n")
        replies.flush()
    return 0
