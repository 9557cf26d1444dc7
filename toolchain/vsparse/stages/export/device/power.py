"""The power meter: tegrastats, read line by line with the time of each reading, so that only a window counts."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import threading
import time
from typing import Any

from vsparse.stages.export.device.basics import started

INTERVAL_MS = 100
# `VDD_IN 4541mW/4541mW` (instant/average), `VDD_IN 4541/4541` before JetPack 5, and `VDD_IN 9761mW/9761mW/9800mW` with the largest from
# JetPack 7.2 on; `RAM 2100/7620MB` is no rail. A meter with an offset reads below zero where next to nothing is drawn.
RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d{1,7})(mW)?/(-?\d{1,7})(?(3)mW)(?:/-?\d{1,7}mW)?(?![0-9A-Za-z%@/])")


def read_power(line: str, rails: list[str]) -> int | None:
    """Returns the instantaneous mW of the rails that make up the module in a line of tegrastats; None unless it has all of them."""
    found = {name: int(value) for name, value, _, _ in RAIL.findall(line)}
    return sum(found[rail] for rail in rails) if rails and all(rail in found for rail in rails) else None


class Meter:
    """Runs tegrastats beside what is measured; `idle` is the mean before anything runs.

    A reading's time is when its line was found in the log, which is looked at every 20 ms.
    """

    def __init__(self, log: str, rails: list[str], idle_s: float = 2.0) -> None:
        self.log, self.rails, self.ended = log, rails, threading.Event()
        self.readings: list[tuple[float, int]] = []
        self.idle: dict[str, Any] | None = None
        self.process = self.started()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        if self.process is not None:
            self.thread.start()
            began = time.monotonic()
            time.sleep(idle_s)
            self.idle = self.mean([(began, time.monotonic())])

    def started(self) -> Any:
        tool = shutil.which("tegrastats")
        if not tool or not self.rails:
            return None
        options = ["--interval", str(INTERVAL_MS), "--logfile", self.log]
        try:
            return started([tool, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            return None

    def follow(self) -> None:
        place, rest = 0, b""
        while not self.ended.wait(0.02):
            try:
                with open(self.log, "rb") as stream:
                    stream.seek(place)
                    more = stream.read(1 << 16)
            except OSError:
                continue
            place += len(more)
            *lines, rest = (rest + more[: 1 << 16]).split(b"\n")
            now = time.monotonic()
            for line in lines:
                value = read_power(line.decode("utf-8", "replace"), self.rails)
                if value is not None:
                    self.readings.append((now, value))

    def mean(self, windows: list[tuple[float, float]]) -> dict[str, Any] | None:
        """Returns the mean over windows of time.monotonic(); a reading averages over the interval before it, which must lie inside too."""
        inside = [mw for at, mw in self.readings if any(start + INTERVAL_MS / 1000 <= at <= end for start, end in windows)]
        if not inside:
            return None
        return {"power_mw_mean": math.fsum(inside) / len(inside), "readings": len(inside), "rails": self.rails}

    def power(self, windows: list[tuple[float, float]], how: str) -> dict[str, Any] | None:
        """Returns what was drawn over windows, and beside it that without what the device draws idle."""
        found = self.mean(windows)
        if found is None:
            return None
        found.update(window_s=math.fsum(end - start for start, end in windows), window=how, meter=f"tegrastats --interval {INTERVAL_MS}")
        if self.idle is not None:
            found["idle_mw_mean"], found["idle_readings"] = self.idle["power_mw_mean"], self.idle["readings"]
            found["power_mw_above_idle"] = found["power_mw_mean"] - found["idle_mw_mean"]
        return found

    def close(self) -> None:
        self.ended.set()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.thread.join(5)
            if os.path.exists(self.log):
                os.unlink(self.log)


def energy(power: dict[str, Any] | None, ms_per_run: float) -> None:
    """Adds what one run takes: mean power times the mean time of a run, from a meter, and so an estimate."""
    if power is not None:
        power["energy_mj_per_run_estimate"] = power["power_mw_mean"] * ms_per_run / 1000
        if "power_mw_above_idle" in power:
            power["energy_mj_per_run_above_idle_estimate"] = power["power_mw_above_idle"] * ms_per_run / 1000
