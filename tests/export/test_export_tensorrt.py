"""Engines: what is asked of TensorRT, and what is made of its answers. A stand-in module takes its place."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_device import FP32_LAYER
from test_export_runtime_graph import conv_graph

from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.files import sha256_file
from vsparse.stages.export import build_engine, content_sha256, tensorrt_engine, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise
from vsparse.target import load_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.fp32.onnx"
    write_onnx(conv_graph(), path, 17, {})
    return path


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    trt = fake_tensorrt.make(**options)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def two_of_four(folder: Path) -> Path:
    """A file with a weight of which each four inputs in a row have two zeros."""
    graph, path = conv_graph(), folder / "sparse.onnx"
    name = next(key for key, value in graph.params.items() if value.ndim == 2 and value.shape[1] % 4 == 0)
    weight = graph.params[name].copy()
    weight[:, 0::4] = weight[:, 3::4] = 0
    write_onnx(graph.with_params({**graph.params, name: weight}), path, 17, {})
    return path


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "11.4.0.106"])
def test_a_strongly_typed_engine_without_tf32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, version: str) -> None:
    trt = install(monkeypatch, version=version, layers=[FP32_LAYER])
    report = build_engine(model, tmp_path / "m.engine", batch=4)
    assert trt.record["network_flags"] == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.record["flags"] == set()
    assert trt.record["verbosity"] == "DETAILED"
    assert trt.record["shapes"] == [("input", (4, 1, 8, 8), (4, 1, 8, 8), (4, 1, 8, 8))]
    assert report.engine_sha256 == sha256_file(tmp_path / "m.engine")
    assert report.onnx_sha256 == sha256_file(model)
    assert report.content_sha256 == content_sha256(model)
    assert report.tensorrt_version == version
    build_engine(two_of_four(tmp_path), tmp_path / "m.engine", sparsity="enable")
    assert trt.record["flags"] == {trt.BuilderFlag.SPARSE_WEIGHTS}


@pytest.mark.parametrize(
    "layers",
    [
        [{**FP32_LAYER, "TacticName": "sm80_xmma_winograd_f32"}],
        [FP32_LAYER, {**FP32_LAYER, "TacticName": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc"}],
        [],
        "no JSON",
        ["named only"],
    ],
)
def test_a_mismatch_is_a_gate_and_leaves_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, layers: Any) -> None:
    install(monkeypatch, layers=layers)
    with pytest.raises(GateError, match="does not honour the contract fp32"):
        build_engine(model, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_what_tensorrt_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "m.engine"
    install(monkeypatch, parses=False)
    with pytest.raises(InputError, match="unsupported operator"):
        build_engine(model, out)
    install(monkeypatch, builds=False)
    with pytest.raises(GateError, match="no implementation for node c1"):
        build_engine(model, out)
    install(monkeypatch, sticky_tf32=True, layers=[FP32_LAYER])
    with pytest.raises(GateError, match="keeps TF32 on"):
        build_engine(model, out)


def test_no_tensorrt_no_gpu_an_old_one_or_another_device_are_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "m.engine"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"does not import here.*run_on_device\.py"):
        build_engine(model, out)
    install(monkeypatch, gpu=False)
    with pytest.raises(UnavailableError, match="finds no usable GPU"):
        build_engine(model, out)
    install(monkeypatch, version="8.5.2")
    with pytest.raises(UnavailableError, match=r"TensorRT 8\.5\.2 cannot build strongly typed"):
        build_engine(model, out)
    install(monkeypatch, layers=[FP32_LAYER])
    with pytest.raises(UnavailableError, match="cannot be built on another machine"):
        build_engine(model, out, target=load_target("jetson-thor"))


def test_what_would_break_a_certificate_is_refused_before_tensorrt_is_asked(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="it changes weights"):
        build_engine(model, tmp_path / "m.engine", sparsity="force")  # type: ignore[arg-type]  # what a careless caller may pass
    with pytest.raises(InputError, match='"fp16" cannot be built'):
        build_engine(model, tmp_path / "m.engine", precision="fp16")
    with pytest.raises(InputError, match=r'no weight of .* has two zeros in each four inputs; use "disable"'):
        build_engine(model, tmp_path / "m.engine", sparsity="enable")
    with pytest.raises(InputError, match="batch is 0"):
        build_engine(model, tmp_path / "m.engine", batch=0)
    with pytest.raises(InputError, match="not there"):
        build_engine(tmp_path / "none.onnx", tmp_path / "m.engine")


HALF, INTEGER = (
    {
        "Name": "c1",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": f"Row major linear {kind}"}],
        "Outputs": [{"Name": "y", "Format/Datatype": f"Row major linear {kind}"}],
        "TacticName": f"sm80_xmma_fprop_implicit_gemm_{tactic}_nhwckrsc_nhwc",
    }
    for kind, tactic in (("FP16", "f16f16_f16f16_f16"), ("Int8", "i8i8_i8i32_f32"))
)


def test_each_precision_is_held_to_its_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph, out, samples = conv_graph(), tmp_path / "m.engine", np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)
    made = {"fp16": half(graph), "int8": quantise(graph, samples, "int8-tensorrt")}
    for (precision, one), layer in zip(made.items(), (HALF, INTEGER), strict=True):
        path = tmp_path / f"model.{precision}.onnx"
        write_onnx(one, path, 17, {})
        install(monkeypatch, layers=[layer])
        report = build_engine(path, out, precision, target=None)
        assert (report.precision, report.layers) == (precision, (layer,))
        with pytest.raises(InputError, match=rf'"fp32" cannot be built: .* is in {precision}.*use {precision}'):
            build_engine(path, out)
        install(monkeypatch, layers=[{**layer, "TacticName": "0x9f5c1e"}])
        with pytest.raises(GateError, match="does not say how it multiplies"):
            build_engine(path, out, precision)
    install(monkeypatch, layers=[HALF])
    with pytest.raises(GateError, match=r"contract fp16: .*adds in f16"):
        build_engine(tmp_path / "model.fp16.onnx", out, "fp16", contract="fp16")


def test_a_timing_cache_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    trt, cache = install(monkeypatch, layers=[FP32_LAYER]), tmp_path / "timing.cache"
    build_engine(model, tmp_path / "m.engine", timing_cache=cache)
    assert trt.record["caches"] == [b""]
    before = cache.read_bytes()
    build_engine(model, tmp_path / "m.engine", timing_cache=cache)
    assert trt.record["caches"] == [b"", before]


API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())["versions"]


@pytest.mark.parametrize("version", API)
def test_every_call_is_one_of_the_real_bindings(version: str) -> None:
    """What was read from the bindings packages of 10.3, 10.13, 10.16 and 11.4: names, members and parameters."""
    known, methods = API[version]["enums"], API[version]["methods"]
    tree = ast.parse(Path(tensorrt_engine.__file__).read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    members = {tuple(name.split(".")[1:]) for name in used if re.fullmatch(r"trt\.(?!ILogger)\w+\.\w+", name)}
    assert {"BuilderFlag", "NetworkDefinitionCreationFlag", "LayerInformationFormat"} <= {enum for enum, _ in members}
    assert all(member in known[enum] for enum, member in members)
    fake = fake_tensorrt.make()
    ours = {
        "Builder": fake.Builder,
        "IBuilderConfig": fake.Config,
        "ITimingCache": fake.TimingCache,
        "OnnxParser": fake.OnnxParser,
        "ParserError": fake.ParserError,
        "Runtime": fake.Runtime,
        "IOptimizationProfile": fake.Profile,
        "EngineInspector": fake.Inspector,
        "ICudaEngine": fake.Engine,
    }
    for name, kind in ours.items():
        for method, function in vars(kind).items():
            if method.startswith("_"):
                continue
            stated = methods[f"{name}.{method}"]
            if callable(function) and isinstance(stated, list):  # positional, as they are called
                assert list(inspect.signature(function).parameters)[1:] == stated[: function.__code__.co_argcount - 1]
    assert API[version]["builder_without_gpu"] == "TypeError: pybind11::init(): factory function returned nullptr"
    for flag in ("FP16", "INT8"):  # precision is in the graph: no flag for it is ever set
        assert not any(name.endswith(f"BuilderFlag.{flag}") for name in used)


def test_the_stand_in_has_nothing_that_real_bindings_lack() -> None:
    """Where the real bindings import (with or without a GPU), every name the stand-in offers must exist there too."""
    real = pytest.importorskip("tensorrt", reason="the tensorrt bindings are not installed")
    fake = fake_tensorrt.make()
    for name in ("NetworkDefinitionCreationFlag", "BuilderFlag", "ProfilingVerbosity", "LayerInformationFormat", "MemoryPoolType"):
        for member in getattr(fake, name):
            assert hasattr(getattr(real, name), member.name), (name, member.name)
    for theirs, ours in (
        ("Builder", fake.Builder),
        ("IBuilderConfig", fake.Config),
        ("OnnxParser", fake.OnnxParser),
        ("Runtime", fake.Runtime),
    ):
        for attribute in vars(ours):
            assert attribute.startswith("_") or attribute == "logger" or hasattr(getattr(real, theirs), attribute), (theirs, attribute)
    for theirs, ours in (("EngineInspector", fake.Inspector), ("ICudaEngine", fake.Engine), ("IOptimizationProfile", fake.Profile)):
        for attribute in vars(ours):
            assert attribute.startswith("_") or hasattr(getattr(real, theirs), attribute), (theirs, attribute)


def test_an_unforeseen_failure_of_the_bindings_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    trt = install(monkeypatch, layers=[FP32_LAYER])

    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error 999")

    trt.Builder.build_serialized_network = fails
    with pytest.raises(UnavailableError, match="CUDA error 999"):
        build_engine(model, tmp_path / "m.engine")
