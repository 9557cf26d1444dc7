"""model.c: it computes the stated order of summation, number for number, with any options, and refuses what it cannot say."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from vsparse.artifact.hashes import content_sha256
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Conv,
    Gemm,
    Graph,
    MaxPool,
    MulConstant,
    Relu,
    Reshape,
    to_onnx,
    validate,
)
from vsparse.graph.ir import Tanh
from vsparse.graph.shapes import output_shape
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


class Builder:
    """A network of one operator after another, with random weights."""

    def __init__(self, rng, *shape):
        self.rng, self.input_shape, self.last, self.nodes, self.params = rng, shape, "x", [], {}
        self.shapes = {"x": shape}

    def param(self, *shape, density=1.0):
        name = f"p{len(self.params)}"
        value = self.rng.normal(size=shape).astype(np.float32)
        value[self.rng.random(shape) >= density] = 0
        self.params[name] = value
        return name

    def add(self, kind, *inputs, shape=(), **fields):
        inputs = inputs or (self.last,)
        node = kind(name=f"n{len(self.nodes)}", inputs=inputs, shape=shape, **fields)
        sizes = {name: value.shape for name, value in self.params.items()}
        shape = output_shape(node, [self.shapes[name] for name in inputs], sizes)
        node = kind(name=node.name, inputs=inputs, shape=shape, **fields)
        self.nodes.append(node)
        self.last, self.shapes[node.name] = node.name, shape
        return node.name

    def conv(self, out, kernel=(3, 3), density=1.0, groups=1, bias=True, **fields):
        weight = self.param(out, self.shapes[self.last][0] // groups, *kernel, density=density)
        return self.add(Conv, weight=weight, bias=self.param(out) if bias else None, groups=groups, **fields)

    def gemm(self, out, density=1.0, bias=True):
        weight = self.param(out, self.shapes[self.last][0], density=density)
        return self.add(Gemm, weight=weight, bias=self.param(out) if bias else None)

    def flatten(self):
        return self.add(Reshape, shape=(int(np.prod(self.shapes[self.last])),))

    def graph(self):
        return validate(Graph(input="x", input_shape=self.input_shape, nodes=tuple(self.nodes), output=self.last, params=self.params))


def networks():
    """Yields networks that have, together, every operator with every attribute and both kinds of kernels."""
    rng = np.random.default_rng(3)
    b = Builder(rng, 3, 9, 11)
    b.add(AddConstant, constant=b.param(3, 1, 1))
    b.add(MulConstant, constant=b.param(1, 9, 1))
    b.add(AddConstant, constant=b.param(11))
    b.conv(9, stride=(2, 1), pads=(1, 0, 2, 1))
    skip = b.add(Relu)
    b.conv(9, (3, 2), pads=(1, 0, 1, 1), density=0.2)
    b.add(Add, b.last, skip)
    b.add(Relu)
    b.add(MaxPool, kernel=(3, 2), stride=(2, 1), pads=(1, 0, 1, 1))
    b.conv(12, groups=3, density=0.9, bias=False)
    b.add(AveragePool, kernel=(1, 2), stride=(1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(70, density=0.5)
    b.add(Relu)
    b.gemm(21, density=0.05)
    b.gemm(130, bias=False)
    b.add(Relu)
    b.add(Relu)
    b.gemm(3)
    yield b.graph()
    b = Builder(rng, 4, 8, 7)  # reads whole vectors beyond the input: no padding, so no copy of its own
    first = b.conv(10, (1, 1))
    b.conv(10, (3, 3), groups=10, dilation=(2, 3), pads=(2, 3, 2, 3))
    b.add(Add, first, b.last)
    b.conv(5, (2, 2), stride=(3, 2), density=0.0)
    b.conv(6, (2, 1), stride=(1, 3), pads=(0, 1, 1, 1))
    b.add(AveragePool, kernel=(3, 2), stride=(1, 1)) if min(b.shapes[b.last][1:]) > 2 else None
    yield b.graph()
    b = Builder(rng, 40)
    b.gemm(33, density=0.1)
    b.gemm(64, density=0.0)
    b.add(AddConstant, constant=b.param(1))
    b.add(Relu)
    b.gemm(128)
    b.gemm(2)
    yield b.graph()


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
    used = [emit_c(graph).source for graph in networks()]
    for kernel in ("vs_positions", "vs_rows(", "vs_sparse_rows(", "vs_planes("):
        assert any(text.split("vsparse_logits")[1].count(kernel) for text in used), kernel


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
    assert source.static_bytes <= 4 * (2 * 4 * 256 + 2 * 4 * 18 * 18 + 4 * 320 + 100)
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
