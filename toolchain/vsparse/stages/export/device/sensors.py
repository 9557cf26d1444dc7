"""Temperature, clocks, load and throttling, as the kernel tells them; sampled while something is measured."""

from __future__ import annotations

import math
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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
    """Samples the device while something is measured, in a thread where `alone`, and tells before, during and after."""

    def __init__(self, root: str, alone: bool = True) -> None:
        self.root, self.before = root, snapshot(root)
        self.samples, self.looked = 0, time.monotonic()
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.hottest: dict[str, float] = {}
        self.timed = Timed(root)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        if alone:
            self.thread.start()

    def sample(self) -> None:
        while not self.ended.wait(SAMPLE_S):
            self.look()

    def look(self) -> None:
        now = clocks(self.root)
        for low, high in ((self.low, self.high), (self.timed.low, self.timed.high)):
            for name, mhz in now.items():
                low[name], high[name] = min(mhz, low.get(name, mhz)), max(mhz, high.get(name, mhz))
        for name, degrees in temperatures(self.root).items():
            self.hottest[name] = max(degrees, self.hottest.get(name, degrees))
        self.samples, self.looked = self.samples + 1, time.monotonic()

    def timing(self) -> None:
        """Begins anew what is told as `timed`: what is timed begins now."""
        self.timed = Timed(self.root)
        self.look()

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
        throttled = bool(rose or pi) if counts else None
        return {"before": self.before, "during": during, "timed": self.timed.told(), "after": after, "throttled": throttled}

    def end(self) -> None:
        self.ended.set()
        if self.thread.ident is not None:
            self.thread.join(5)


class Timed:
    """Clocks from now on, and what others take of the processors: all but this process and its descendants."""

    def __init__(self, root: str) -> None:
        self.root, self.at = root, time.monotonic()
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.busy, self.stolen = processor_ticks(root)
        self.before = process_ticks(root)
        self.own = own_ticks(self.before)

    def told(self) -> dict[str, Any]:
        """Returns the clocks, the cores taken by others and by the host of a virtual machine, and who took most; None: it does not tell."""
        window = max(time.monotonic() - self.at, 1e-3)
        now, (busy, stolen) = process_ticks(self.root), processor_ticks(self.root)
        own, rate = descendants(now), window * ticks_per_second()
        taken: dict[str, float] = {}
        for pid, (_, name, ticks, _) in now.items():
            earlier = self.before.get(pid, (0, "", 0, 0))[2]
            if pid not in own and ticks > earlier:
                taken[name] = taken.get(name, 0.0) + (ticks - earlier) / rate
        most = sorted(taken.items(), key=lambda one: -one[1])[:3]
        seen = math.fsum(taken.values())
        others = None if busy is None or self.busy is None else (busy - self.busy - (own_ticks(now) - self.own)) / rate
        return {
            "window_s": window,
            "clocks_mhz_min": dict(self.low),
            "clocks_mhz_max": dict(self.high),
            "others_cores": max(0.0, seen, others or 0.0) if now or others is not None else None,
            "stolen_cores": None if stolen is None or self.stolen is None else (stolen - self.stolen) / rate,
            "others": [{"name": name, "cores": cores} for name, cores in most if cores >= 0.02],
        }


def ticks_per_second() -> float:
    return float(os.sysconf("SC_CLK_TCK"))


def processor_ticks(root: str) -> tuple[int | None, int | None]:
    """Returns the ticks in which processors did something, and those that the host of a virtual machine took; /proc/stat."""
    words = read_text(os.path.join(root, "proc/stat")).split("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:9]):
        return None, None
    user, nice, system, _, _, irq, softirq, stolen = map(int, words[1:9])
    return user + nice + system + irq + softirq, stolen


def process_ticks(root: str) -> dict[int, tuple[int, str, int, int]]:
    """Returns for each process its parent, its name, its own ticks and those of its children that ended; /proc/PID/stat."""
    found: dict[int, tuple[int, str, int, int]] = {}
    for pid in entries_of(os.path.join(root, "proc")):
        if pid.isdigit():
            head, _, rest = read_text(os.path.join(root, "proc", pid, "stat")).rpartition(")")
            words = rest.split()
            if len(words) > 14 and all(re.match(r"-?\d{1,18}\Z", word) for word in words[1:15]):
                name = clean(head.partition("(")[2], 40)
                found[int(pid)] = int(words[1]), name, int(words[11]) + int(words[12]), int(words[13]) + int(words[14])
    return found


def descendants(processes: dict[int, tuple[int, str, int, int]]) -> set[int]:
    """Returns this process and all that it started, whether or not by others."""
    found = {os.getpid()}
    while True:
        more = {pid for pid, one in processes.items() if one[0] in found} - found
        if not more:
            return found
        found |= more


def own_ticks(processes: dict[int, tuple[int, str, int, int]]) -> int:
    own = [processes[pid] for pid in descendants(processes) if pid in processes]
    return sum(ticks + ended for _, _, ticks, ended in own)
