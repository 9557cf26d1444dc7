"""The forms that are run in processes of their own, and how they are timed: warmed up until stable, then in alternating blocks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop, clean, read_all, started
from vsparse.stages.export.device.latency import MOST_RUNS, Counted, turns_of, warmed_up

LEAD_NS = 1000000


class Worker:
    """A process that holds one form; `ask` raises Stop where it ends, or takes too long."""

    def __init__(self, what: str, kind: str, log: str, limit: float) -> None:
        self.what, self.limit, self.log, self.rest = what, limit, log, b""
        command = [sys.executable, os.path.abspath(__file__), "--worker"]
        with open(log, "wb") as stream:
            self.process = started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream)
        self.kind = kind

    def ask(self, **asked: Any) -> Any:
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise Stop(1, self.ended()) from None
        deadline = time.monotonic() + self.limit
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise Stop(1, f"{self.what} did not finish within {self.limit:.0f} s; give --timeout more")
            if select.select([self.process.stdout], [], [], min(left, 1.0))[0]:
                more = os.read(self.process.stdout.fileno(), 1 << 20)
                if not more:
                    raise Stop(1, self.ended())
                self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        found = json.loads(line)
        if "error" in found:
            raise Stop(found.get("code", 1), "{} does not run: {}".format(self.what, found["error"]))
        return found

    def ended(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return f"{self.what} was killed, as the kernel does where memory is short; end other programs, then run again"
        lines = read_all(self.log).strip().splitlines()
        why = clean(lines[-1]) if lines else "no reason was given"
        named = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{self.what} crashed ({named}): {why}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


class Form:
    """One form in one runtime: its entry in the results, its process, its samples, and what of the run it takes part in."""

    def __init__(self, entry: dict[str, Any], worker: Worker, opening: dict[str, Any]) -> None:
        self.entry, self.worker = entry, worker
        self.samples, self.spent, self.fault = Counted(), 0.0, ""
        self.layered: Any = None  # returns what the process is asked, to time layers
        opened = worker.ask(do="open", kind=worker.kind, **opening)
        entry.setdefault("settings", {}).update(opened["settings"])
        entry["memory"] = {"process_bytes_before": opened["process_bytes_before"], "process_peak_bytes": opened["peak_bytes"]}

    def block(self, runs: int, turn_ns: int, lead_ns: int = 0) -> Any:
        return self.worker.ask(do="time", runs=runs, turn_ns=turn_ns, lead_ns=lead_ns)

    def warm(self, timing: dict[str, Any]) -> None:
        """Runs until enough was run and warm-up is stable, or ten times as long has passed."""
        least_s, most_s = timing["warmup_ms"] / 1000, max(timing["warmup_ms"] / 100, 0.5)
        found = warmed_up(lambda runs, ns: self.block(runs, ns)["samples_ns"], timing["warmup_runs"], least_s, most_s)
        self.entry["warmup"] = {key: found[key] for key in ("runs", "seconds", "stable")}

    def take(self, timing: dict[str, Any]) -> None:
        turn_ns, runs = turns_of(timing["runs"], timing["seconds"])
        found = self.block(runs, turn_ns, LEAD_NS)
        busy_s, full = math.fsum(found["samples_ns"]) / 1e9, len(found["samples_ns"]) >= MOST_RUNS
        self.spent += busy_s if full else max(busy_s, turn_ns / 1e9)  # reading the clock is part of a turn
        on_processor = self.entry["runtime"]["name"] != "tensorrt"
        self.samples.add(found["samples_ns"], found["cpu_s"] if on_processor else None, found["end"] - found["start"])
        self.entry["memory"]["process_peak_bytes"] = found["peak_bytes"]

    def told(self, order: list[str]) -> None:
        if self.samples.medians:
            self.entry["latency"] = self.samples.latency()
            lengths = sorted(self.samples.thinned.lengths)
            self.entry["settings"].update(block_runs=lengths[len(lengths) // 2], alternating_blocks_of=order)


def alternate(forms: list[Form], timing: dict[str, Any], progress: Any) -> None:
    """Times forms in turns of one length until each has the runs and the seconds; one that fails drops out and keeps what it has.

    `progress` is called after a round, at first after half a second, and then ever more seldom: what it does takes time of the processor.
    """
    for form in forms:
        guarded(form, form.warm, timing)
    order, told = ["{} ({})".format(form.entry["role"], form.entry["runtime"]["name"]) for form in forms], time.monotonic()
    wait = 0.5
    while True:
        going = [form for form in forms if not form.fault]
        for form in going:
            guarded(form, form.take, timing)
        going = [form for form in going if not form.fault]
        done = all(form.samples.thinned.total >= timing["runs"] and form.spent >= timing["seconds"] for form in going)
        if done or time.monotonic() - told >= wait:
            for form in forms:
                form.told(order)
            progress()
            told, wait = time.monotonic(), min(2 * wait, 60.0)
        if done:
            return


def guarded(form: Form, step: Any, given: Any) -> None:
    if not form.fault:
        try:
            step(given)
        except Stop as stop:
            form.fault = str(stop)


def meter_alone(form: Form, meter: Any, seconds: float) -> dict[str, Any] | None:
    """Runs one form by itself for a while, and reads the meter over exactly that; blocks in turns are too short for one."""
    if meter.process is None:
        return None
    start, end, runs, busy = math.inf, 0.0, 0, 0.0
    while end - start < seconds:
        found = form.block(1, 200000000)
        start, end, runs = min(start, found["start"]), found["end"], runs + len(found["samples_ns"])
        busy += math.fsum(found["samples_ns"])
    time.sleep(0.15)  # the last readings come late
    power: dict[str, Any] | None = meter.power([(start, end)], "runs of this form alone, one after the other")
    if power is not None:
        power.update(runs_in_window=runs, ms_per_run=busy / 1e6 / runs)
    return power
