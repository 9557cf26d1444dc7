"""The agent through the tensorrt module, where a device has it and no trtexec: stand-ins for the module and for libcudart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from device_folders import QUICK, probe_of
from fake_device import FAULTS, FP32_LAYER, FakeJetson

from vsparse.stages.export import Probe, write_device_folder
from vsparse.target import load_target

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for a stand-in of libcudart")

CUDART = """
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return *p ? 0 : 2; }
int cudaMemcpy(void *to, const void *from, size_t n, int way) { memcpy(to, from, n); return way == 1 || way == 2 ? 0 : 21; }
int cudaStreamCreate(void **s) { *s = malloc(1); return 0; }
int cudaStreamSynchronize(void *s) { return s ? 0 : 400; }
"""
# The names are those of the bindings of 10.3 to 11.4; an execution writes the logits of the set-up.
MODULE = """
import ctypes, enum, json, os
__version__ = json.load(open(os.environ["FAKE_SETUP"])).get("module", "10.3.0")
setup = json.load(open(os.environ["FAKE_SETUP"]))


class Flag(enum.IntEnum):
    STRONGLY_TYPED = 1
    TF32 = 7
    SPARSE_WEIGHTS = 8


NetworkDefinitionCreationFlag = BuilderFlag = Flag
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "DETAILED")
LayerInformationFormat = enum.Enum("LayerInformationFormat", "JSON")


class Logger:
    ERROR = 1

    def __init__(self, severity):
        pass


class Config:
    profiling_verbosity = None

    def __init__(self):
        self.flags = {Flag.TF32}

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_flag(self, flag):
        self.flags.add(flag)

    def add_optimization_profile(self, profile):
        self.shapes = profile.shapes


class Profile:
    def set_shape(self, name, least, best, most):
        self.shapes = name, least, best, most


class Builder:
    def __init__(self, logger):
        if setup.get("no_gpu"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags):
        assert flags == 2
        return self

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        assert Flag.TF32 not in config.flags and config.profiling_verbosity is ProfilingVerbosity.DETAILED
        return None if setup.get("build_fails") else json.dumps(config.shapes).encode()


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        pass

    def parse(self, data):
        return bool(data)


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        self.shapes = json.loads(plan)
        return self

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, form):
        return json.dumps({"Layers": setup["layers"]})

    def get_tensor_shape(self, name):
        return (-1, len(setup["logits"]))

    def create_execution_context(self):
        return Context(self.shapes)


class Context:
    def __init__(self, shapes):
        self.shapes, self.addresses = shapes, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def set_input_shape(self, name, shape):
        self.batch = shape[0]
        return self.shapes[1][0] <= shape[0] <= self.shapes[3][0]

    def execute_async_v3(self, stream):
        values = setup["logits"] * self.batch
        ctypes.memmove(self.addresses["logits"], (ctypes.c_float * len(values))(*values), 4 * len(values))
        return stream is not None
"""


@pytest.fixture
def module(tmp_path: Path, jetson: FakeJetson) -> Any:
    shutil.rmtree(jetson.root / "usr")  # no trtexec
    place = tmp_path / "packages"
    place.mkdir()
    (place / "tensorrt.py").write_text(MODULE)
    (place / "cudart.c").write_text(CUDART)
    subprocess.run(["cc", "-shared", "-fPIC", "cudart.c", "-o", "libcudart.so"], cwd=place, check=True)

    def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        jetson.setup_file.write_text(json.dumps(jetson.setup))
        environment = {"PATH": f"{jetson.bin}:/usr/bin:/bin", "FAKE_SETUP": str(jetson.setup_file), "HOME": str(tmp_path)}
        environment |= {"PYTHONPATH": str(place), "LD_LIBRARY_PATH": str(place), "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-S", str(script), "--root", str(jetson.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)

    return run


def test_models_are_built_read_back_audited_and_timed(module: Any, tmp_path: Path, model: Path, jetson: FakeJetson) -> None:
    probe = probe_of(model)
    folder = tmp_path / "device"
    write_device_folder(folder, {"packed": model}, load_target("jetson-orin-nano"), "c" * 64, timing=QUICK, probes={"packed": [probe]})
    jetson.setup["logits"] = ((probe.lower + probe.upper) / 2).tolist()
    done = module(folder / "agent.py")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    (measured,) = results["models"]
    assert results["runtime"] == {"name": "tensorrt", "version": "10.3.0", "tool": "the tensorrt module"}
    assert [(one["name"], one["passed"]) for one in measured["gates"]] == [("arithmetic", True), ("audit", True)]
    assert measured["latency"]["runs_timed"] >= 20
    assert measured["layers"] == [FP32_LAYER]
    assert (folder / measured["engine_file"]).stat().st_size == measured["engine_bytes"]
    assert measured["power"]["power_mw_mean"] == 4500
    jetson.setup["logits"][3] += 1
    assert module(folder / "agent.py").returncode == 1
    jetson.setup["layers"] = FAULTS["winograd"]
    assert "Winograd" in module(folder / "agent.py", "--batch", "3").stdout


@pytest.mark.parametrize(
    ("setup", "code", "words"),
    [
        ({"no_gpu": True}, 3, "TensorRT 10.3.0 finds no usable GPU or driver"),
        ({"build_fails": True}, 1, "TensorRT 10.3.0 built no engine"),
        ({"module": "8.5.2"}, 3, "builds nothing strongly typed; install JetPack's trtexec"),
    ],
)
def test_what_fails_is_a_sentence(module: Any, folder: Path, jetson: FakeJetson, setup: dict[str, Any], code: int, words: str) -> None:
    jetson.setup |= setup
    done = module(folder / "agent.py")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_of_another_runtime_leaves_it_out(module: Any, tmp_path: Path, model: Path, jetson: FakeJetson) -> None:
    jetson.setup["no_gpu"] = True
    shifted = probe_of(model)
    folder = tmp_path / "device"
    probes = {"model": [Probe(shifted.x, shifted.lower, shifted.upper)]}
    write_device_folder(folder, [model], load_target("local"), "", timing=QUICK, probes=probes)
    done = module(folder / "agent.py")
    assert done.returncode == 3  # -S: this Python has no onnxruntime, which is the target's
    partial = json.loads((folder / "results.partial.json").read_text())
    reasons = {one["runtime"]: one["reason"] for one in partial["skipped"]}
    assert "no usable GPU or driver" in reasons["tensorrt"]
    assert "No module named 'onnxruntime'" in reasons["onnxruntime"]
