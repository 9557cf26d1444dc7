"""Temperature, clocks, load and throttling, as the kernel tells them; sampled while something is measured."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

from vsparse.stages.export.device.basics import clean, entries_of, output_of, read_text

SAMPLE_S = 0.5


def snapshot(root: str) -> dict[str, Any]:
    """Returns the state of the device now; what it does not tell is absent."""
    load = read_text(os.path.join(root, "proc/loadavg")).split()
    return {
        "monotonic_s": time.monotonic(),
        "load_average_1min": float(load[0]) if load and re.match(r"\d+\.\d+\Z", load[0]) else None,
        "temperatures_c": temperatures(root),
        "clocks_mhz": clocks(root),
        "governors": governors(root),
        "throttle_counts": throttle_counts(root),
    }


def number_in(path: str) -> int | None:
    text = read_text(path).strip()
    return int(text) if re.match(r"-?\d{1,18}\Z", text) else None


def temperatures(root: str) -> dict[str, float]:
    found: dict[str, float] = {}
    base = os.path.join(root, "sys/class/thermal")
    for name in entries_of(base):
        value = number_in(os.path.join(base, name, "temp")) if name.startswith("thermal_zone") else None
        if value is not None and -100000 < value < 300000:
            label = clean(read_text(os.path.join(base, name, "type")), 60) or name
            found[label if label not in found else name] = value / 1000
    return found


def clocks(root: str) -> dict[str, float]:
    """Current clock of each core that tells it, and of the devices with a clock of their own, the GPU of a Jetson among them."""
    found: dict[str, float] = {}
    cores = os.path.join(root, "sys/devices/system/cpu")
    for name in entries_of(cores):
        value = number_in(os.path.join(cores, name, "cpufreq/scaling_cur_freq")) if re.match(r"cpu\d+\Z", name) else None
        if value is not None:
            found[name] = value / 1000
    devices = os.path.join(root, "sys/class/devfreq")
    for name in entries_of(devices):
        value = number_in(os.path.join(devices, name, "cur_freq"))
        if value is not None:
            found[clean(name, 60)] = value / 1e6
    return found


def governors(root: str) -> dict[str, int]:
    """How many cores have each governor."""
    found: dict[str, int] = {}
    cores = os.path.join(root, "sys/devices/system/cpu")
    for name in entries_of(cores):
        told = clean(read_text(os.path.join(cores, name, "cpufreq/scaling_governor")), 60) if re.match(r"cpu\d+\Z", name) else ""
        if told:
            found[told] = found.get(told, 0) + 1
    return found


def throttle_counts(root: str) -> dict[str, int]:
    """Counters of throttling, which only rise: of cores (x86), of over-current events (Jetson), and the flags of a Raspberry Pi."""
    found: dict[str, int] = {}
    cores = os.path.join(root, "sys/devices/system/cpu")
    for name in entries_of(cores):
        value = number_in(os.path.join(cores, name, "thermal_throttle/core_throttle_count")) if re.match(r"cpu\d+\Z", name) else None
        if value is not None:
            found["core_throttle_count"] = found.get("core_throttle_count", 0) + value
    meters = os.path.join(root, "sys/class/hwmon")
    for name in entries_of(meters):
        for file in entries_of(os.path.join(meters, name)):
            value = number_in(os.path.join(meters, name, file)) if re.match(r"oc\d+_event_cnt\Z", file) else None
            if value is not None:
                found[file] = found.get(file, 0) + value
    flags = re.search(r"throttled=0x([0-9a-fA-F]{1,8})", output_of(["vcgencmd", "get_throttled"], 5))
    if flags:
        found["raspberry_pi_throttled_flags"] = int(flags.group(1), 16)
    return found


class Watch:
    """Samples the device in a thread while something is measured, and tells before, during and after."""

    def __init__(self, root: str) -> None:
        self.root, self.before = root, snapshot(root)
        self.samples = 0
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.hottest: dict[str, float] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()

    def sample(self) -> None:
        while not self.ended.wait(SAMPLE_S):
            for name, mhz in clocks(self.root).items():
                self.low[name] = min(mhz, self.low.get(name, mhz))
                self.high[name] = max(mhz, self.high.get(name, mhz))
            for name, degrees in temperatures(self.root).items():
                self.hottest[name] = max(degrees, self.hottest.get(name, degrees))
            self.samples += 1

    def told(self) -> dict[str, Any]:
        """Returns the conditions so far; `throttled` None where the device counts nothing."""
        after = snapshot(self.root)
        counts, earlier = after["throttle_counts"], self.before["throttle_counts"]
        pi = counts.get("raspberry_pi_throttled_flags", 0) & 0xF  # what holds now; the higher bits are since the boot
        rose = any(value > earlier.get(name, 0) for name, value in counts.items())
        during = {
            "samples": self.samples,
            "every_s": SAMPLE_S,
            "clocks_mhz_min": dict(self.low),
            "clocks_mhz_max": dict(self.high),
            "temperatures_c_max": dict(self.hottest),
        }
        return {"before": self.before, "during": during, "after": after, "throttled": bool(rose or pi) if counts else None}

    def end(self) -> None:
        self.ended.set()
        self.thread.join(5)
