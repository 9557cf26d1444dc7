"""What the agent reads of trtexec, tegrastats and the kernel: four versions, two formats, power over the timed runs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_device import FakeJetson, options_of, program

from vsparse.stages.export.device.facts import SELF, elf_machine, emulation
from vsparse.stages.export.device.power import read_power
from vsparse.stages.export.device.sensors import Watch, snapshot
from vsparse.stages.export.device.trtexec import trtexec_version

NEW = (
    "RAM 2100/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [12%@1510,off] GR3D_FREQ 62%@612 gpu@50C VDD_IN 4541mW/4600mW VDD_CPU_GPU_CV 521mW/530mW"
)
OLD = "RAM 1903/7772MB SWAP 0/3886MB (cached 0MB) EMC_FREQ 0%@1600 PMIC@100C VDD_IN 4541/4600 VDD_CPU_GPU_CV 521/530 VDD_SOC 1400/1410"
AGX = "GPU@41C VDD_GPU_SOC 2810mW/2810mW VDD_CPU_CV 803mW/803mW VIN_SYS_5V0 3021mW/3021mW NC 0mW/0mW"
# As devices print them: Xavier AGX before and after JetPack 5, Orin under JetPack 7.2 (R39), and Thor, whose meter has an offset.
XAVIER_OLD = (
    "RAM 2340/15699MB (lfb 1083x4MB) CPU [2%@1190,off] EMC_FREQ 0% AO@34C PMIC@100C GPU 0/0 CPU 311/311 SOC 934/934 SYS5V 1502/1502"
)
XAVIER = "RAM 2340/15699MB SWAP 0/7849MB GPU 0mW/0mW CPU 465mW/465mW SOC 1242mW/1242mW SYS5V 2760mW/2760mW"
R39 = (
    "09-15-2026 12:19:33 RAM 999/62841MB CPU [0%@729,off] GR3D_FREQ 0% cpu@43.093C/43.093C tj@42.906C/42.968C "
    "VDD_GPU_SOC 2792mW/2792mW/2792mW VDD_CPU_CV 0mW/0mW/0mW VIN_SYS_5V0 3918mW/3952mW/4019mW"
)
THOR = "RAM 3000/125772MB GR3D_FREQ 0%@[0,0,0] VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3924mW VIN_SYS_5V0 6520mW/6520mW"
NANO = "POM_5V_IN 2104/2104 POM_5V_GPU 40/40 POM_5V_CPU 484/484"  # the first Jetson Nano


@pytest.mark.parametrize(
    ("line", "rails", "mw"),
    [
        (NEW, ["VDD_IN"], 4541),
        (OLD, ["VDD_IN"], 4541),
        (NEW, ["VDD_IN", "VDD_CPU_GPU_CV"], 5062),
        (AGX, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], 6634),
        (NANO, ["POM_5V_IN"], 2104),
        (XAVIER_OLD, ["GPU", "CPU", "SOC", "SYS5V"], 2747),
        (XAVIER, ["GPU", "CPU", "SOC", "SYS5V"], 4467),
        (R39, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], 6710),
        (THOR, ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], 10052),
        (NEW, ["VDD_SOC"], None),  # a rail that is not told
        (NEW, ["RAM"], None),  # which is no rail
        (NEW, [], None),
        ("VDD_IN 4541mW/4600", ["VDD_IN"], None),  # a line that was cut
        ("VDD_IN 4541", ["VDD_IN"], None),
        ("VDD_IN 4541mW/4600mW/47", ["VDD_IN"], None),
        ("VDD_IN 4541mW/4600mW/4700mW/4800mW", ["VDD_IN"], None),  # of a format that nobody has seen
    ],
)
def test_both_formats_of_tegrastats_are_read(line: str, rails: list[str], mw: int | None) -> None:
    assert read_power(line, rails) == mw


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", (8, 5, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b32] # trtexec --help", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b3] # trtexec", (10, 16, 2)),
    ],
)
def test_versions_are_read_from_the_banner(banner: str, version: tuple[int, int, int]) -> None:
    assert trtexec_version(banner) == version


@pytest.mark.parametrize(("version", "form"), [("8502", "old"), ("100300", "new"), ("101303", "new"), ("101602", "r39")])
def test_power_is_that_of_the_timed_runs_with_idle_stated(folder: Path, jetson: FakeJetson, version: str, form: str) -> None:
    """Each stand-in refuses options that its version does not have."""
    jetson.setup |= {"version": version, "tegrastats": form, "draws": {"idle": 1500, "warming up": 9000, "busy": 4500}}
    done = jetson.run(folder / "agent.py")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    (measured,) = results["models"]
    power = measured["power"]
    assert power["power_mw_mean"] == 4500
    assert (power["idle_mw_mean"], power["power_mw_above_idle"]) == (1500, 3000)
    assert power["idle_readings"] > 0
    assert power["energy_mj_per_run_above_idle_estimate"] == pytest.approx(3000 * measured["latency"]["latency_ms_mean"] / 1000)
    assert "before and after inference" in power["window"]
    assert power["window_s"] == pytest.approx(0.2, abs=0.01)
    assert results["runtime"]["version"].replace(".", "") in {"852", "1030", "10133", "10162"}
    assert measured["memory"]["process_peak_bytes"] > 0


@pytest.mark.parametrize("version", ["8502", "100300", "101303", "101602"])
def test_all_that_each_trtexec_writes_is_read(folder: Path, jetson: FakeJetson, version: str) -> None:
    jetson.setup |= {"version": version, "logits": [-1.5, 2.25e-06, 0.333333, *[0.0] * 7]}
    done = jetson.run(folder / "agent.py")
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads((folder / "results.json").read_text())["models"]
    samples = measured["latency"]["samples_ms"]
    assert len(samples) == 200
    assert (samples[0], samples[-1]) == (0.4, 0.599)
    assert [layer["name"] for layer in measured["layer_times"]] == ["c1"]
    assert measured["layers"]
    assert [gate["passed"] for gate in measured["gates"]] == [True, None]
    # An option that this version does not have ends its stand-in as it ends trtexec.
    stranger = {"8502": "--stronglyTyped", "100300": "--tileSize=1", "101303": "--includeDataTransfers", "101602": "--workspace=1"}[version]
    assert stranger.partition("=")[0] not in options_of(version)
    path = jetson.root / "usr/src/tensorrt/bin/trtexec"
    environment = {"FAKE_SETUP": str(jetson.setup_file), "FAKE_LOG": str(jetson.log)}
    refused = subprocess.run([str(path), stranger], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"[E] Unknown option: {stranger.partition('=')[0]}" in refused.stdout


def test_options_of_timing_are_trtexecs(folder: Path, jetson: FakeJetson) -> None:
    done = jetson.run(folder / "agent.py", "--runs", "50", "--seconds", "0.5", "--warmup", "20", "--batch", "2")
    assert done.returncode == 0, done.stderr
    timed = next(set(call) for call in jetson.calls() if any(option.startswith("--exportTimes") for option in call))
    assert {"--iterations=70", "--duration=0.5", "--warmUp=0", "--shapes=input:2x1x8x8"} <= timed
    results = json.loads((folder / "results.json").read_text())
    assert results["models"][0]["latency"]["runs_timed"] == 180  # the first twenty of two hundred warmed up
    assert results["models"][0]["gates"][1]["passed"] is None  # probes are single samples


def test_an_option_out_of_range_is_refused(folder: Path, jetson: FakeJetson) -> None:
    for option, value in (("--runs", "0"), ("--seconds", "-1"), ("--batch", "x"), ("--runtime", "tflite")):
        done = jetson.run(folder / "agent.py", option, value)
        assert done.returncode == 2
        assert option in done.stderr


def test_what_was_measured_survives_an_engine_that_cannot_be_built(folder: Path, jetson: FakeJetson) -> None:
    jetson.setup["build_fails"] = True
    assert jetson.run(folder / "agent.py").returncode == 1
    partial = json.loads((folder / "results.partial.json").read_text())
    assert not partial["complete"]
    assert "no implementation for node c1" in partial["models"][0]["fault"]


def sysfs(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_temperatures_clocks_and_throttling_are_read(tmp_path: Path) -> None:
    cpu, zone = "sys__devices__system__cpu__cpu0__cpufreq__", "sys__class__thermal__thermal_zone0__"
    sysfs(tmp_path, **{cpu + "scaling_cur_freq": "1510400", cpu + "scaling_governor": "schedutil"})
    sysfs(
        tmp_path,
        **{zone + "temp": "51250", zone + "type": "tj-\x1b[31mthermal", "sys__class__devfreq__17000000.gpu__cur_freq": "612000000"},
    )
    sysfs(tmp_path, **{"sys__class__hwmon__hwmon1__oc3_event_cnt": "4", "proc__loadavg": "0.52 0.58 0.59 1/467 12345"})
    found = snapshot(str(tmp_path))
    assert found["temperatures_c"] == {"tj- [31mthermal": 51.25}
    assert found["clocks_mhz"] == {"cpu0": 1510.4, "17000000.gpu": 612.0}
    assert (found["governors"], found["load_average_1min"]) == ({"schedutil": 1}, 0.52)
    watch = Watch(str(tmp_path))
    assert watch.told()["throttled"] is False
    sysfs(tmp_path, **{"sys__class__hwmon__hwmon1__oc3_event_cnt": "5", zone + "temp": "text"})
    watch.end()
    told = watch.told()
    assert told["throttled"] is True
    assert told["after"]["temperatures_c"] == {}
    assert Watch(str(tmp_path / "nothing")).told()["throttled"] is None


def test_a_raspberry_pi_says_that_it_is_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags, throttled in (("0x50000", False), ("0x50005", True)):  # since the boot; now
        program(tmp_path / "vcgencmd", f'print("throttled={flags}")\n')
        watch = Watch(str(tmp_path))
        assert watch.told()["throttled"] is throttled
        watch.end()


ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41"
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme"


def test_an_emulated_processor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    sysfs(tmp_path, proc__cpuinfo=ARM)
    assert emulation(str(tmp_path)) == (False, None)
    sysfs(tmp_path, proc__cpuinfo=X86)
    assert emulation(str(tmp_path)) == (True, "a user emulator on x86")
    assert emulation(str(tmp_path / "absent")) == (None, None)


def elf(machine: int, more: bytes = b"") -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0" + machine.to_bytes(2, "little") + bytes(44) + more


QEMU = b"\0qemu-aarch64 version 7.2.22 (Debian 1:7.2)\0"


@pytest.mark.parametrize(
    ("machine", "name", "executable", "emulated", "emulator"),
    [
        ("aarch64", "python3", elf(183), False, None),
        ("aarch64", "python3", elf(40), False, None),  # 32-bit programs on the 64-bit kernel of a Raspberry Pi
        ("armv8l", "python3", elf(183), False, None),  # under linux32
        ("armv7l", "python3", elf(40), False, None),
        ("x86_64", "python3", elf(3), False, None),
        # Newer emulators pretend a /proc/cpuinfo of Arm too; of what the kernel runs they cannot.
        ("aarch64", "qemu-aarch64-static", elf(62, QEMU), True, "qemu-user, qemu-aarch64 version 7.2.22 (Debian 1:7.2)"),
        ("aarch64", "something", elf(62), True, "a user emulator"),
        ("armv7l", "qemu-arm", elf(183), True, "a user emulator"),  # both are Arm
        ("x86_64", "rosetta", elf(183), True, "a user emulator"),
        ("riscv64", "qemu-riscv64", elf(62), True, "a user emulator"),
        ("sparc64", "python3", elf(43), False, None),  # not known here
        ("aarch64", "python3", b"#!/bin/sh", False, None),  # not an executable that tells
    ],
)  # fmt: skip
def test_what_the_kernel_runs_tells_an_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, name: str, executable: bytes, emulated: bool, emulator: str | None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    sysfs(tmp_path, proc__cpuinfo=ARM if machine.startswith(("a", "r", "s")) else X86)
    (tmp_path / name).write_bytes(executable)
    (tmp_path / "proc/thread-self").mkdir()
    (tmp_path / "proc/thread-self/exe").symlink_to(tmp_path / name)
    assert emulation(str(tmp_path)) == (emulated, emulator)


def test_a_machine_that_is_emulated_whole_is_told_from_a_virtual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    sysfs(tmp_path, proc__cpuinfo=X86 + "\nmodel name\t: QEMU Virtual CPU version 2.5+")
    assert emulation(str(tmp_path)) == (True, "QEMU Virtual CPU version 2.5+")
    sysfs(tmp_path, sys__devices__system__clocksource__clocksource0__available_clocksource="kvm-clock tsc hpet acpi_pm")
    assert emulation(str(tmp_path)) == (False, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_kernel_tells_what_it_runs_here() -> None:
    assert elf_machine("/" + SELF) == elf_machine(os.path.realpath(sys.executable))
    assert elf_machine(__file__) is None
