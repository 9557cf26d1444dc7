"""A pretended Jetson for tests: its files under a root, and trtexec, tegrastats and nvpmodel as small programs on the PATH."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

FP32_LAYER = {
    "Name": "c1 + r1",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "input", "Dimensions": [1, 1, 8, 8], "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [{"Name": "r1", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Row major linear FP32"}],
    "Weights": {"Type": "Float", "Count": 72},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize64x32x8_stage3_warpsize2x1x1_g1_ffma",
}

# Options are those of the version's source (trtexec_options.json); what is printed and written is laid out as its sampleReporting.cpp and
# logging.h have it: 8.5.2, 10.3, 10.13 and 10.16 write the same JSON, and from 10.13 on the banner ends with the build.
TRTEXEC = """
import json, os, sys
setup = json.load(open(os.environ["FAKE_SETUP"]))
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
given = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
n = int(setup["version"]) if setup["version"].isdigit() else 0
version = (n // 1000, n // 100 % 10) if n < 10000 else (n // 10000, n // 100 % 100)
# What each version refuses: 8.5 has no strong typing, 10 builds by --skipInference, from 11 on some are nameless defaults.
REFUSED = {8: ("stronglyTyped", "skipInference"), 10: ("buildOnly", "noCudaGraph"), 11: ("buildOnly", "useCudaGraph", "fp16")}


def state(text):  # of the meter: what the GPU does now
    open(os.environ["FAKE_SETUP"] + ".state", "w").write(text)


BUILDS = {(10, 13): " [b35]", (10, 16): " [b72]"}
name = "TensorRT.trtexec [TensorRT v%s]%s # %s" % (setup["version"], BUILDS.get(version, ""), " ".join(sys.argv))
print("&&&& RUNNING " + name)
known = setup.get("options")
unknown = [one for one in given if "--" + one not in known] if known else [one for one in REFUSED.get(version[0], ()) if one in given]
if unknown:
    print("[11/21/2026-09:00:00] [E] Unknown option: --%s %s" % (unknown[0], given[unknown[0]]))
    print("&&&& FAILED " + name)
    sys.exit(1)


def write(path, text):
    with open(path, "w") as stream:
        stream.write(text)


def seconds(at, run):  # one run of --exportTimes: starts and ends of its parts, and what each took
    ends = (("Enq", 0.1), ("H2d", 0), ("Compute", run), ("D2h", 0))
    points = ["\\"start%sMs\\" : %g, \\"end%sMs\\" : %g" % (part, at, part, at + takes) for part, takes in ends]
    return "{ %s, \\"h2dMs\\" : 0, \\"computeMs\\" : %g, \\"d2hMs\\" : 0, \\"latencyMs\\" : %g }" % (", ".join(points), run, run)


if "help" in given:
    print(setup.get("help", "=== Model Options ===\\n  --onnx=<file>  ONNX model\\n  --stronglyTyped"))
    sys.exit(0)
if "onnx" in given:
    if setup.get("build_fails"):
        print("[11/21/2026-09:00:00] [E] Error[4]: no implementation for node c1")
        print("&&&& FAILED TensorRT.trtexec")
        sys.exit(1)
    if not setup.get("no_engine"):
        open(given["saveEngine"], "wb").write(b"engine of " + open(given["onnx"], "rb").read()[:64])
    layers = setup.get("layers_of", {}).get(os.path.basename(given["onnx"]), setup["layers"])
    if "timingCacheFile" in given:
        open(given["timingCacheFile"], "ab").write(b"t")
    if "buildOnly" in given:  # as trtexec 8.5 does
        sys.exit(0)
    text = layers if isinstance(layers, str) else json.dumps({"Layers": layers, "Bindings": ["input", "logits"]})
    open(given["exportLayerInfo"], "w").write(text)
elif "exportLayerInfo" in given:
    open(given["exportLayerInfo"], "w").write(json.dumps({"Layers": setup["layers"], "Bindings": ["input", "logits"]}))
elif "exportOutput" in given:
    values = ", ".join("%g" % one if isinstance(one, (int, float)) else json.dumps(one) for one in setup["logits"])
    text = '[\\n  { "name" : "logits"\\n  , "dimensions" : "1x10"\\n  , "values" : [ %s ]\\n  }\\n]\\n'
    write(given["exportOutput"], text % values)
elif "exportTimes" in given:
    times = setup.get("times")
    import time
    if setup.get("silent_about_inference"):
        time.sleep(0.3)
    else:
        print("[11/21/2026-09:00:00] [I] Setting persistentCacheLimit to 0 bytes.")
        print("[11/21/2026-09:00:00] [I] Starting inference", flush=True)
        state("warming up")
        time.sleep(0.15)
        state("busy")
        time.sleep(0.35)
        state("idle")
        print("[11/21/2026-09:00:01] [I] Warmup completed 100 queries over 150 ms", flush=True)
        print("[11/21/2026-09:00:01] [I] Timing trace has 200 queries over 0.2 s", flush=True)
        time.sleep(0.1)
    runs = "\\n, ".join(seconds(i, 0.4 + i / 1000) for i in range(200))
    write(given["exportTimes"], times if times is not None else "[\\n  %s\\n]\\n" % runs)
elif "exportProfile" in given:
    layer = '{ "name" : "c1", "timeMs" : 1, "averageMs" : 0.1, "medianMs" : 0.1, "percentage" : 100 }'
    write(given["exportProfile"], '[\\n  { "count" : 10 }\\n, %s\\n]\\n' % layer)
print("&&&& PASSED " + name)
"""

OPTIONS = {
    tuple(map(int, version.split(".")[:2])): entry["options"]
    for version, entry in json.loads((Path(__file__).parent / "trtexec_options.json").read_text())["versions"].items()
}


def options_of(version: str) -> list[str]:
    """Every option of a version that is written as in the banner; none where its source is not known."""
    n = int(version) if version.isdigit() else 0
    return OPTIONS.get((n // 1000, n // 100 % 10) if n < 10000 else (n // 10000, n // 100 % 100), [])


# Formats of JetPack 5 and newer, before, and of JetPack 7.2 (R39), which adds the largest value; the power follows what trtexec does.
TEGRASTATS = """
import json, os, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
setup = json.load(open(os.environ["FAKE_SETUP"]))
LINES = {
    "new": "11-21-2026 09:00:00 RAM 2100/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [12%%@1510,off] GR3D_FREQ 62%%@612 gpu@50C tj@51.2C "
           "VDD_IN %dmW/4541mW VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1400mW/1400mW\\n",
    "old": "RAM 1903/7772MB (lfb 1x4MB) SWAP 0/3886MB (cached 0MB) CPU [8%%@1190,off] EMC_FREQ 0%%@1600 GR3D_FREQ 0%%@114 AO@35.5C "
           "PMIC@100C GPU@35C VDD_IN %d/4541 VDD_CPU_GPU_CV 521/521 VDD_SOC 1400/1400\\n",
    "r39": "11-21-2026 09:00:00 RAM 5739/7546MB (lfb 1x2MB) SWAP 2047/2048MB (cached 209MB) CPU [72%%@1728,off] GR3D_FREQ 33%% "
           "cpu@50C/50C tj@50C/51C VDD_IN %dmW/9761mW/9800mW VDD_CPU_GPU_CV 4238mW/4238mW/4238mW VDD_SOC 1825mW/1825mW/1825mW\\n",
}
draws = setup.get("draws", {})
with open(given["--logfile"], "w") as log:
    for i in range(1000):
        try:
            state = open(os.environ["FAKE_SETUP"] + ".state").read()
        except OSError:
            state = "idle"
        log.write(LINES[setup.get("tegrastats", "new")] % draws.get(state, 4500))
        log.flush()
        time.sleep(0.02)
"""

NVPMODEL = 'print("NV Power Mode: 15W")\nprint(0)\n'


def program(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -I\n{source}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class FakeJetson:
    """Runs a device folder's script as if on a Jetson Orin Nano, whose Python has no packages; `setup` says what its trtexec does."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "root", folder / "bin", folder / "log"
        self.setup: dict[str, Any] = {"version": "100300", "layers": [FP32_LAYER], "logits": [0.0] * 10}
        self.setup_file = folder / "setup.json"
        tree = self.root / "proc/device-tree"
        tree.mkdir(parents=True)
        (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
        self.compatible("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
        (self.root / "etc").mkdir()
        (self.root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
        program(self.root / "usr/src/tensorrt/bin/trtexec", TRTEXEC)
        program(self.bin / "tegrastats", TEGRASTATS)
        program(self.bin / "nvpmodel", NVPMODEL)

    def compatible(self, *entries: str) -> None:
        (self.root / "proc/device-tree/compatible").write_bytes(b"".join(entry.encode() + b"\0" for entry in entries))

    def run(self, script: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
        self.setup_file.write_text(json.dumps({"options": options_of(self.setup["version"]), **self.setup}))
        environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "FAKE_SETUP": str(self.setup_file),
            "FAKE_LOG": str(self.log),
            "LC_ALL": "C.UTF-8",
        }
        command = [python, "-I", "-S", str(script), "--root", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def changed(**fields: Any) -> dict[str, Any]:
    return {**FP32_LAYER, **fields}


def layer_in(kind: str, tactic: str) -> dict[str, Any]:
    tensor = {"Name": "x", "Format/Datatype": f"Row major linear {kind}"}
    return changed(Inputs=[tensor], Outputs=[tensor], Weights={"Type": kind, "Count": 72}, TacticName=f"sm80_xmma_fprop_{tactic}_nhwc")


# Layers of engines that do not do what fp32 promises.
FAULTS = {
    "winograd": [changed(TacticName="ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1")],
    "tf32": [changed(TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_tensor16x8x8")],
    "half": [changed(TacticName="sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc")],
    "hmma": [changed(TacticName="turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1")],
    "tensor core": [changed(TacticName="ampere_s16816gemm_64x64_tn")],
    "fft": [changed(TacticName="fft2d_r2c_32x32")],
    "int8": [changed(TacticName="trt_volta_int8x4_icudnn_int8x4_128x64_relu")],
    "half tensor": [changed(Outputs=[{"Name": "r1", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}])],
    "half tensor, newer form": [changed(Inputs=[{"Name": "x", "Format": "Row major linear", "DataType": "Half"}])],
    "half weights": [changed(Weights={"Type": "Half", "Count": 72})],
    "unnamed tactic": [changed(TacticName="", TacticValue="0x1")],
    "names only": ["c1 + r1", "fc"],
    "no layers": [],
    "not JSON": '{"Layers": [',
}
