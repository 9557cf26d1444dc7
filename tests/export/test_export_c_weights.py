"""Weights in C in the binary notation: the same bits as in text, on every processor that has a compiler here, and nothing that stays."""

import shutil
import subprocess
from math import prod

import numpy as np
import pytest
from c_nets import Builder, networks

from vsparse.artifact.models import CSourceRecord
from vsparse.errors import InputError
from vsparse.graph import Relu
from vsparse.recipe import load_recipe
from vsparse.stages.export.c_int8 import emit_int8_c, simulate_integers
from vsparse.stages.export.c_source import CompiledModel, emit_c, find_compiler, simulate
from vsparse.stages.export.c_source.weights import TEXT_NUMBERS, Table, is_binary
from vsparse.stages.export.firmware import BOARDS, emulate
from vsparse.stages.export.firmware.link import footprint
from vsparse.stages.export.quantise import quantise

OPTIONS = ("-O1", "-std=c99", "-ffp-contract=off")


def _small(rng, out=5):
    b = Builder(rng, 2, 6, 6)
    b.conv(6, (3, 3), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(5, (3, 3), density=0.2)
    b.flatten()
    b.gemm(18, density=0.3)
    b.add(Relu)
    b.gemm(out)
    return b.graph()


def _quantised(graph, rng):
    return quantise(graph, rng.random((50, *graph.input_shape), dtype=np.float32), "int8")


def _logits(folder, name, graph, x, options, prefix):
    with CompiledModel(folder / name, graph.input_shape, prod(graph.shape_of(graph.output)), options, prefix) as compiled:
        return compiled.logits(x)


def test_both_notations_give_the_same_bits(tmp_path):
    for graph in networks():
        x = np.random.default_rng(1).normal(size=(3, *graph.input_shape)).astype(np.float32)
        expected = simulate(graph, x)[graph.output].reshape(3, -1)
        emit_c(graph, prefix="net", weights="binary").write(tmp_path)
        assert (tmp_path / "model_weights.bin").stat().st_size > 0
        assert np.array_equal(_logits(tmp_path, "model.c", graph, x, (*OPTIONS, "-march=native"), "net"), expected, equal_nan=True)


def test_in_8_bit_integers_both_notations_give_the_same_bits(tmp_path):
    rng = np.random.default_rng(2)
    graph = _quantised(_small(rng), rng)
    x = rng.random((5, *graph.input_shape), dtype=np.float32)
    emit_int8_c(graph, prefix="net", weights="binary").write(tmp_path)
    got = _logits(tmp_path, "model.int8.c", graph, x, OPTIONS, "net_int8")
    assert np.array_equal(got, simulate_integers(graph, x))


def test_a_text_after_a_binary_leaves_nothing_of_it(tmp_path):
    graph = _small(np.random.default_rng(0))
    for weights, files in (("binary", 5), ("text", 3), ("auto", 3)):
        emit_c(graph, weights=weights).write(tmp_path)
        assert len(list(tmp_path.iterdir())) == files


def test_many_weights_are_binary_by_themselves():
    few, many = Table("float", "a", np.zeros(TEXT_NUMBERS, np.float32)), Table("int8_t", "b", np.zeros(1, np.int8))
    assert not is_binary("auto", [few])
    assert is_binary("auto", [few, many])
    assert not is_binary("text", [few, many])
    assert is_binary("binary", [many])


def test_numbers_are_little_endian_and_in_the_order_of_their_declarations():
    graph = _small(np.random.default_rng(0))
    files = emit_c(graph, weights="binary").binary
    bias = graph.params[graph.nodes[0].bias]
    text, data = str(files["model_weights.S"]), bytes(files["model_weights.bin"])
    line = next(line for line in text.partition("\nvsparse_n1_bias:\n")[2].splitlines() if ".incbin" in line)
    _, offset, size = line.split(",")
    assert data[int(offset) : int(offset) + int(size)] == bias.astype("<f4").tobytes()


def test_the_record_says_which_notation_it_is():
    assert not CSourceRecord(written=False, reason="no").is_binary
    files = ("model.c", "model_weights.bin")
    assert CSourceRecord(written=True, reason="", files=files, constant_bytes=1, static_bytes=1).is_binary


def test_symbols_stay_inside_of_a_library_and_data_cannot_be_written_or_executed(tmp_path):
    emit_c(_small(np.random.default_rng(0)), weights="binary").write(tmp_path)
    built = subprocess.run(
        [find_compiler(), *OPTIONS, "-shared", "-fPIC", "model.c", "model_weights.S", "-o", "m.so"], cwd=tmp_path, check=False
    )
    assert built.returncode == 0
    said = subprocess.run(["readelf", "-W", "--dyn-syms", "-l", "m.so"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    exported = [line.split()[-1] for line in said.splitlines() if "GLOBAL" in line and "UND" not in line]
    assert sorted(exported) == ["vsparse_classify", "vsparse_classify_in", "vsparse_logits", "vsparse_logits_in"]
    assert [line.split()[-2] for line in said.splitlines() if "GNU_STACK" in line] == ["RW"]


def test_a_shorter_file_of_weights_is_refused(tmp_path):
    graph = _small(np.random.default_rng(0))
    emit_c(graph, weights="binary").write(tmp_path)
    data = (tmp_path / "model_weights.bin").read_bytes()
    (tmp_path / "model_weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="does not compile"):
        CompiledModel(tmp_path / "model.c", graph.input_shape, 5, OPTIONS)


_ELSEWHERE = {
    "gcc": ((), ()),
    "clang": ((), ()),
    "aarch64-linux-gnu-gcc": ((), ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")),
    "arm-linux-gnueabihf-gcc": (("-mfpu=neon",), ("qemu-arm-static", "-L", "/usr/arm-linux-gnueabihf")),
}


@pytest.mark.parametrize("compiler", _ELSEWHERE)
def test_two_networks_with_weights_in_bytes_link_into_one_program(tmp_path, compiler):
    machine, run = _ELSEWHERE[compiler]
    if shutil.which(compiler) is None or (run and shutil.which(run[0]) is None):
        pytest.skip(f"needs {compiler}{f' and {run[0]}' if run else ''}")
    rng = np.random.default_rng(4)
    objects, calls, expected = [], [], []
    for number, name in enumerate(("first", "second")):
        graph = _small(rng, 4 + number)
        folder = tmp_path / name
        folder.mkdir()
        emit_c(graph, prefix=name, weights="binary").write(folder)
        x = np.linspace(-1, 1, 72, dtype=np.float32).reshape(1, 2, 6, 6)
        expected += [f"{v:08x}" for v in simulate(graph, x)[graph.output].view(np.uint32).reshape(-1).tolist()]
        for unit in ("model.c", "model_weights.S"):
            objects.append(str(tmp_path / f"{name}{unit[-2:]}.o"))
            command = [compiler, *machine, *OPTIONS, "-c", f"{name}/{unit}", f"-I{name}", "-o", objects[-1]]
            subprocess.run(command, cwd=tmp_path, check=True)
        calls.append(f"{name}_logits(x, y); show(y, {4 + number});")
    (tmp_path / "main.c").write_text(
        '#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n#include "first/model.h"\n#include "second/model.h"\n'
        "static void show(const float *y, int n)\n{\n    uint32_t b;\n    for (int i = 0; i < n; i++) {\n        memcpy(&b, y + i, 4);\n"
        '        printf("%08x ", b);\n    }\n}\n'
        f"int main(void)\n{{\n    static float x[72] = {{{', '.join(f'{float(v).hex()}f' for v in x.reshape(-1))}}};\n"
        f"    float y[5];\n    {' '.join(calls)}\n    return 0;\n}}\n"
    )
    subprocess.run([compiler, *machine, "-std=c99", "main.c", *objects, "-o", "program"], cwd=tmp_path, check=True)
    said = subprocess.run([*run, "./program"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.split() == expected


def test_a_microcontroller_has_the_same_bits_and_as_much_flash(tmp_path):
    if shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None:
        pytest.skip("needs arm-none-eabi-gcc and qemu-system-arm")
    rng = np.random.default_rng(5)
    graph = _small(rng)
    x = rng.random((2, *graph.input_shape), dtype=np.float32)
    taken = []
    for weights in ("text", "binary"):
        folder = tmp_path / weights
        folder.mkdir()
        emit_c(graph, weights=weights).write(folder)
        taken.append(footprint(BOARDS["cortex-m4f"].options, folder / "model.c", "vsparse"))
    done = emulate(BOARDS["cortex-m4f"], [folder / "model.c"], x, 5, "vsparse_logits")
    assert np.array_equal(done.logits, simulate(graph, x)[graph.output])
    # The compiler makes code of the smallest tables where it sees their numbers.
    assert taken[0].flash_bytes <= taken[1].flash_bytes <= taken[0].flash_bytes + 128
    assert taken[1].stack_bytes > 0


def test_a_recipe_names_the_notation():
    assert load_recipe("digits").export.c_weights == "auto"
    assert load_recipe("digits", ["export.c_weights=binary"]).export.c_weights == "binary"
    with pytest.raises(InputError, match="c_weights"):
        load_recipe("digits", ["export.c_weights=hex"])


def test_nothing_of_a_title_can_end_a_comment():
    files = emit_c(_small(np.random.default_rng(0)), "", '*/ "\n#error', weights="binary").files()
    for name in ("model_weights.S", "model_weights.h"):
        assert "of __ ___error" in str(files[name])
