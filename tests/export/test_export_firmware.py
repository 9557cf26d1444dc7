"""model.c on microcontrollers: its bits under emulation, its instructions, and what it takes of flash, RAM and stack."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_nets import Builder, networks

from vsparse.errors import InputError, UnavailableError
from vsparse.graph import Graph, Relu
from vsparse.stages.export import firmware
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_live import emit_live_c, emit_live_int8_c
from vsparse.stages.export.c_source import emit_c, simulate
from vsparse.stages.export.firmware import BOARDS, emulate, footprint, link
from vsparse.stages.export.firmware.emulate import find_emulator
from vsparse.stages.export.firmware.link import OPTIONS, cross_compiler_version, entry_points, find_cross_compiler, sizes_of
from vsparse.stages.export.firmware.stack import deepest
from vsparse.stages.export.quantise import quantise
from vsparse.target import load_target

NAIVE_GEMM = """
static const float w[{n}][{k}] = {{{{0}}}};
void naive(const float *input, float *logits)
{{
    for (int i = 0; i < {n}; i++) {{
        float sum = 0.0f;
        for (int j = 0; j < {k}; j++)
            sum += w[i][j] * input[j];
        logits[i] = sum;
    }}
}}
"""


@pytest.fixture
def tools() -> None:
    try:
        find_cross_compiler()
        find_emulator()
    except UnavailableError as error:
        pytest.skip(str(error))


def _digits(rng: np.random.Generator) -> Graph:
    """Returns a network of the shape of the digits recipe's."""
    b = Builder(rng, 1, 8, 8)
    b.conv(6, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.conv(13, (4, 4), stride=(2, 2), pads=(1, 1, 1, 1))
    b.add(Relu)
    b.flatten()
    b.gemm(40)
    b.add(Relu)
    b.gemm(10)
    return b.graph()


def _same_bits(graph: Graph, board: str, folder: Path, optimise: str, inputs: int = 2) -> int:
    """Executes a network on a board, compares every logit, and returns the instructions of the first input."""
    emit_c(graph).write(folder)
    x = np.random.default_rng(0).normal(size=(inputs, *graph.input_shape)).astype(np.float32)
    expected = simulate(graph, x)[graph.output].reshape(inputs, -1)
    done = emulate(BOARDS[board], [folder / "model.c"], x, expected.shape[1], "vsparse_logits", (optimise, *OPTIONS[1:]))
    np.testing.assert_array_equal(done.logits, expected)
    return int(done.instructions[0])


@pytest.mark.parametrize("board", ["cortex-m4f", "cortex-m3"])
def test_a_network_has_the_stated_bits_in_firmware(tools: None, tmp_path: Path, board: str) -> None:
    graph = _digits(np.random.default_rng(0))
    terms = 9_008
    taken = _same_bits(graph, board, tmp_path, "-O2")
    # With an FPU: a load for some of the terms, a multiplication and an addition; without: two calls of some twenty-five instructions.
    assert taken < (4 if board == "cortex-m4f" else 52) * terms


@pytest.mark.slow
@pytest.mark.parametrize("board", list(BOARDS))
@pytest.mark.parametrize("optimise", ["-O0", "-O2", "-O3", "-Os"])
def test_every_operator_has_the_stated_bits_on_every_board(tools: None, tmp_path: Path, board: str, optimise: str) -> None:
    for graph in networks():
        _same_bits(graph, board, tmp_path, optimise)


def test_the_counter_counts_instructions(tools: None, tmp_path: Path) -> None:
    """Twice the loop takes twice the instructions, of the same order as its terms; the start-up costs nothing."""
    counts = []
    for n in (20, 40):
        source = tmp_path / "naive.c"
        source.write_text(NAIVE_GEMM.format(n=n, k=100))
        counts.append(int(emulate(BOARDS["cortex-m4f"], [source], np.ones((1, 100), np.float32), n, "naive").instructions[0]))
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.03)
    assert 4 * 20 * 100 < counts[0] < 12 * 20 * 100


def test_flash_ram_and_stack_come_from_the_linker_and_the_compiler(tools: None, tmp_path: Path) -> None:
    source = emit_c(_digits(np.random.default_rng(0)), prefix="digits")
    source.write(tmp_path)
    taken = footprint(BOARDS["cortex-m4f"].options, tmp_path / "model.c", "digits")
    assert abs(taken.constant_bytes - source.scalar.constant_bytes) <= 100  # short tables become immediate operands
    assert source.scalar.arena_bytes <= taken.ram_bytes <= source.scalar.arena_bytes + 16
    assert 1_000 < taken.code_bytes < 6_000
    assert taken.flash_bytes == taken.constant_bytes + taken.code_bytes
    assert 40 < taken.stack_bytes < 600
    assert "arm-none-eabi-gcc" in taken.compiler


def test_a_map_is_read() -> None:
    text = """Discarded input sections

 .text          0x00000000        0x8 model.o

Linker script and memory map

 .text.vs_a     0x00008000       0x10 model.o
 .rodata.a_table_with_a_long_name
                0x00008010       0x24 model.o
 .bss           0x00010000        0x0 model.o
 .bss.vs_arena  0x00010000      0x100 model.o
"""
    assert sizes_of(text) == [(".text.vs_a", 16), (".rodata.a_table_with_a_long_name", 36), (".bss.vs_arena", 256)]


def test_what_certifies_on_the_device_is_counted(tools: None, tmp_path: Path) -> None:
    """Flash with the tables and the code of the live certificate; the stack by the call graph that the compiler draws itself."""
    graph = _digits(np.random.default_rng(0))
    quantised = quantise(graph, np.random.default_rng(1).random((16, 1, 8, 8), dtype=np.float32))
    for plain, live, name, prefix in (
        (emit_c(graph), emit_live_c(graph), "model.c", "vsparse"),
        (emit_live_c(graph), emit_live_c(graph, second=True), "model.c", "vsparse"),
        (emit_int8_c(quantised), emit_live_int8_c(quantised), "model.int8.c", "vsparse_int8"),
    ):
        taken = []
        for source in (plain, live):
            source.write(tmp_path)
            taken.append(footprint(BOARDS["cortex-m4f"].options, tmp_path / name, prefix))
        assert taken[1].code_bytes > taken[0].code_bytes + 1_000
        assert taken[1].flash_bytes > taken[0].flash_bytes + 1_500
        assert taken[1].ram_bytes > taken[0].ram_bytes
        for optimise in ("-O0", "-O2", "-O3", "-Os"):
            command = [find_cross_compiler(), *BOARDS["cortex-m4f"].options, *OPTIONS[1:], optimise, "-ffunction-sections", "-fstack-usage"]
            subprocess.run([*command, "-fcallgraph-info=su", "-c", name, "-o", "live.o"], cwd=tmp_path, check=True)
            usage, graph_of_calls = ((tmp_path / f"live.{kind}").read_text() for kind in ("su", "ci"))
            entries = entry_points(usage, prefix)
            assert ("certify_budget" in " ".join(entries)) == ("_budget" in live.header)
            bound = deepest(usage, graph_of_calls, entries)
            one_frame = max(int(line.split("\t")[1]) for line in usage.splitlines())
            assert one_frame < bound <= deepest(usage, "", entries)
            assert [deepest(usage, graph_of_calls, [one]) for one in entries if one.endswith("certify")] > [one_frame]


def test_boards_and_targets_name_one_processor() -> None:
    for name in set(BOARDS) - {"cortex-m3"}:
        assert load_target(name).device.compiler_options == BOARDS[name].options


def test_what_does_not_link_or_end_is_a_sentence(tools: None, tmp_path: Path) -> None:
    source = tmp_path / "naive.c"
    source.write_text("void naive(const float *input, float *logits) { (void)input; logits[0] = *(volatile float *)0xFFFFFFF0u; }")
    with pytest.raises(InputError, match="ended with"):
        emulate(BOARDS["cortex-m4f"], [source], np.ones((1, 1), np.float32), 1, "naive")
    source.write_text("#error no\n")
    with pytest.raises(InputError, match="refuses the network"):
        link(BOARDS["cortex-m4f"], [source], tmp_path / "image.elf")


def test_without_the_tools_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware.link.__globals__["shutil"], "which", lambda name: None)
    with pytest.raises(UnavailableError, match="arm-none-eabi-gcc is not on the path"):
        footprint(("-mcpu=cortex-m4",), tmp_path / "model.c", "vsparse")
    with pytest.raises(UnavailableError, match="qemu-system-arm is not on the path"):
        find_emulator()
    assert cross_compiler_version() == "absent"
