"""model.c: it computes the stated order of summation, number for number, with any options, and refuses what it cannot say."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from c_nets import Builder, networks

from vsparse.artifact.hashes import content_sha256
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import BatchNorm, Conv, Gemm, Graph, Relu, to_onnx
from vsparse.graph.ir import Tanh
from vsparse.stages.export.c_source import CompiledModel, emit_c, find_compiler, simulate
from vsparse.stages.export.c_source import compile as compiling
from vsparse.stages.export.c_source.literals import comment, float_literal
from vsparse.stages.export.c_source.stage import write_c

PLAIN = ("-O3", "-std=c99", "-ffp-contract=off")
STRICT = (*PLAIN, "-Wall", "-Wextra", "-Werror", "-pedantic")
NATIVE = (*PLAIN, "-march=native")
# The kernels without GNU C's vectors: what any other compiler sees.
SCALAR = ("-O1", "-std=c99", "-ffp-contract=off", "-U__GNUC__")


@pytest.fixture(autouse=True)
def compiler():
    try:
        return find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("options", [STRICT, NATIVE, SCALAR], ids=["strict", "native", "scalar"])
def test_it_computes_the_stated_order_number_for_number(tmp_path, options):
    rng = np.random.default_rng(0)
    for graph in networks():
        x = rng.normal(size=(3, *graph.input_shape)).astype(np.float32)
        expected = simulate(graph, x)[graph.output].reshape(3, -1)
        emit_c(graph, "00" * 32, "net").write(tmp_path)
        with CompiledModel(tmp_path / "model.c", graph.input_shape, expected.shape[1], options) as compiled:
            np.testing.assert_array_equal(compiled.logits(x), expected)
            np.testing.assert_array_equal(compiled.logits(x[::-1])[::-1], expected)  # nothing is left over from the input before


def test_the_networks_use_every_kernel():
    vector, scalar = zip(*(emit_c(graph).source.split("static void vs_network(")[1:] for graph in networks()), strict=True)
    for kernel in ("vs_dense", "vs_positions1(", "vs_rows(", "vs_sparse_slices(", "vs_planes("):
        assert any(kernel in text for text in vector), kernel
    for kernel in ("vs_conv_", "vs_list_", "vs_rows_", "vs_sparse_rows(", "memset(b", "const padded"):
        assert any(kernel in text for text in scalar), kernel


def test_the_order_is_the_stated_one_and_no_other(tmp_path):
    """2^24 + 1 + 1 - 2^24 is 0 from left to right (and bias first), 2 from right to left, and pruned weights change nothing."""
    weight = np.array([[1, 0, 1, 1, 0, -1], [1, 1, 0, 1, -1, 0]], np.float32)
    graph = Graph(
        input="x",
        input_shape=(6,),
        nodes=(Gemm(name="g", inputs=("x",), shape=(2,), weight="w", bias="b"),),
        output="g",
        params={"w": weight, "b": np.array([0, 2.0**24], np.float32)},
    )
    x = np.array([[2.0**24, 1, 1, 1, 2.0**24, 2.0**24], [1, 1, 1, 2.0**24, 2.0**24, 2.0**24]], np.float32)
    emit_c(graph).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (6,), 2) as compiled:
        # Second row: ((2^24 + 2^24) + 1 + 1) - 2^24 = 2^24, and ((2^24 + 1) + 1 + 2^24) - 2^24 = 2^24; the exact values are 2^24 + 2.
        assert compiled.logits(x).tolist() == [[0.0, 2.0**24], [2.0, 2.0**24]]
        assert (simulate(graph, x)["g"] == compiled.logits(x)).all()


def test_nan_and_infinity_stay_visible(tmp_path):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(8)
    b.add(Relu)
    b.gemm(2)
    graph = b.graph()
    emit_c(graph).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (4,), 2) as compiled:
        x = np.array([[np.nan, 0, 0, 0], [3e38, 3e38, 3e38, 3e38], [0, 0, 0, 0]], np.float32)
        finite = np.isfinite(compiled.logits(x)).all(axis=1)
        assert finite.tolist() == [False, False, True]


@pytest.mark.parametrize("option", ["-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations"])
def test_options_that_reorder_sums_are_refused_by_the_file_itself(tmp_path, option):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    emit_c(b.graph()).write(tmp_path)
    with pytest.raises(InputError, match="compile without"):
        CompiledModel(tmp_path / "model.c", (4,), 2, ("-O2", "-std=c99", option))


@pytest.mark.parametrize(
    ("method", "told"), [("0", ""), ("16", ""), ("1", "evaluated as float"), ("2", "evaluated as float"), ("-1", "float")]
)
def test_a_float_is_evaluated_as_one(tmp_path, method, told):
    """16 is what gcc says of processors with arithmetic in half precision, of which -march=native knows."""
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    emit_c(b.graph()).write(tmp_path)
    options = ("-O2", "-std=gnu11", "-U__FLT_EVAL_METHOD__", f"-D__FLT_EVAL_METHOD__={method}")
    with pytest.raises(InputError, match=told) if told else nullcontext():
        CompiledModel(tmp_path / "model.c", (4,), 2, options)


def test_a_cpp_program_can_include_the_header_and_classify(tmp_path, compiler):
    b = Builder(np.random.default_rng(0), 2)
    b.params["w"] = np.array([[1, 0], [0, 1], [-1, -1]], np.float32)
    b.add(Gemm, weight="w", bias=None)
    emit_c(b.graph(), "ab" * 32, "tiny").write(tmp_path)
    main = '#include "model.h"\n#include <stdio.h>\nint main(void){float x[VSPARSE_INPUTS]={1,2},n[2]={1.0f/0.0f,0};'
    (tmp_path / "main.c").write_text(
        main + 'printf("%d %d %s", vsparse_classify(x), vsparse_classify(n), VSPARSE_MODEL_SHA256);return 0;}\n'
    )
    subprocess.run([compiler, *STRICT, "model.c", "main.c", "-o", "main"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True)
    assert done.stdout == f"1 -1 {'ab' * 32}"


def test_memory_is_used_again_and_never_read_out_of_bounds(tmp_path, compiler):
    """Eight layers of one width need two arrays; and every network runs clean under the address and undefined-behaviour sanitizers."""
    b = Builder(np.random.default_rng(0), 1, 16, 16)
    for _ in range(8):
        b.conv(4, pads=(1, 1, 1, 1))
        b.add(Relu)
    source = emit_c(b.graph())
    assert source.scalar.arena_bytes == 4 * (2 * 4 * 17 * 17 + 2 * 18)  # two maps, whose padding is shared between rows and channels
    assert source.vector.arena_bytes <= 4 * (2 * 4 * 256 + 2 * 4 * 18 * 18 + 4 * 320 + 100)
    for i, graph in enumerate(networks()):
        emit_c(graph).write(tmp_path)
        main = '#include "model.h"\n#include <stdlib.h>\nint main(void){float *x=calloc(VSPARSE_INPUTS,4),*y=malloc(4*VSPARSE_CLASSES);'
        (tmp_path / "main.c").write_text(main + "vsparse_logits(x,y);return vsparse_classify(x)<0;}\n")
        command = [
            compiler,
            "-O1",
            "-g",
            "-std=c99",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "model.c",
            "main.c",
            "-o",
            f"m{i}",
        ]
        built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if built.returncode and "san" in built.stderr:
            pytest.skip("this compiler has no sanitizers")
        done = subprocess.run([tmp_path / f"m{i}"], capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
        assert done.returncode == 0, done.stderr[:2000]


def test_what_has_no_c_form_is_refused_by_name(tmp_path):
    b = Builder(np.random.default_rng(0), 4)
    for name in ("s", "b", "m"):
        b.params[name] = np.ones(4, np.float32)
    b.params["v"] = np.ones(4, np.float32)
    b.add(BatchNorm, scale="s", bias="b", mean="m", variance="v", epsilon=1e-5)
    with pytest.raises(InputError, match='"n0" is a batch normalisation; fold it'):
        emit_c(b.graph())
    b = Builder(np.random.default_rng(0), 4)
    b.add(Tanh)
    with pytest.raises(InputError, match=r'"n0" is a Tanh, which the C source has no form for; .* deploy the ONNX file instead'):
        emit_c(b.graph())
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    with pytest.raises(InputError, match="stores fp16"):
        emit_c(replace(b.graph(), storage="fp16"))


def test_the_stage_writes_both_files_or_says_why_not(tmp_path, monkeypatch):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(5)
    b.gemm(2)
    model = to_onnx(b.graph(), 17, None, "m")
    path = tmp_path / "model.fp32.onnx"
    path.write_bytes(model.SerializeToString())
    assert write_c(path, "net")
    record = json.loads((tmp_path / "c_source.json").read_text())
    assert record["written"]
    assert content_sha256(model) in (tmp_path / "model.h").read_text()
    first = (tmp_path / "model.c").read_bytes()
    assert write_c(path, "net")
    assert (tmp_path / "model.c").read_bytes() == first
    monkeypatch.setattr("vsparse.stages.export.c_source.emit.SUPPORTED", (Conv,))
    (tmp_path / "model.c").unlink()
    assert not write_c(path, "net")
    record = json.loads((tmp_path / "c_source.json").read_text())
    assert not record["written"]
    assert "is a Gemm" in record["reason"]
    assert not (tmp_path / "model.c").exists()


def test_names_from_a_file_cannot_leave_their_comment(tmp_path):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    evil = '*/ int system(const char*); /* \\\n#error "x"\n??/'
    node = Gemm(name=evil, inputs=("x",), shape=(2,), weight=b.nodes[0].weight, bias=b.nodes[0].bias)
    graph = Graph(input="x", input_shape=(4,), nodes=(node,), output=evil, params=b.params)
    emit_c(graph, evil, evil).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (4,), 2, STRICT) as compiled:
        assert compiled.logits(np.ones((1, 4), np.float32)).shape == (1, 2)
    assert "*/" not in comment(evil)
    assert "\n" not in comment(evil)
    assert "system(const char*)" not in (tmp_path / "model.c").read_text()


def test_float_literals_are_exact():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 2000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.array([0, 1, -1, 2.0**-149, 3.4028235e38, 0.1], np.float32)])
    for value in values.tolist():
        text = float_literal(value)
        assert text.endswith("f")
        assert np.float32(float.fromhex(text[:-1]) if "x" in text else float(text[:-1])) == np.float32(value)


def test_without_a_compiler_the_error_says_so(tmp_path, monkeypatch):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    emit_c(b.graph()).write(tmp_path)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match="no C compiler") as caught:
        CompiledModel(tmp_path / "model.c", (4,), 2)
    assert caught.value.exit_code == 3
    assert compiling.compiler_version() == "absent"


def test_inputs_of_another_shape_are_refused(tmp_path):
    b = Builder(np.random.default_rng(0), 4)
    b.gemm(2)
    emit_c(b.graph()).write(tmp_path)
    with CompiledModel(tmp_path / "model.c", (4,), 2) as compiled, pytest.raises(InputError, match="float32 inputs of shape"):
        compiled.logits(np.ones((1, 5), np.float32))
