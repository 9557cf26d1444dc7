"""What cannot fit a microcontroller is refused by number before it is trained, and by a gate once it is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from vsparse.artifact.facts import Facts
from vsparse.artifact.models import CFootprint, CSourceRecord
from vsparse.cli.results import analysis_line, footprint_line, live_line
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.graph.from_torch import from_torch
from vsparse.networks import make
from vsparse.pipeline.fits import limit_kib, require_fit
from vsparse.pipeline.gates import memory_gates
from vsparse.recipe import load_recipe
from vsparse.target import Target, load_target

TARGET = "cortex-m4f"


@pytest.fixture(scope="module")
def untrained() -> Graph:
    recipe = load_recipe("digits")
    return from_torch(make(recipe.network, (1, 8, 8), 10).eval(), (1, 8, 8))


def _small(kib: float, memory: str) -> Target:
    target = load_target(TARGET)
    facts = {**target.device.facts, memory: target.device.facts[memory].model_copy(update={"value": kib})}
    return target.model_copy(update={"device": target.device.model_copy(update={"facts": facts})})


def test_a_network_that_fits_is_let_through(untrained: Graph) -> None:
    require_fit(load_recipe("digits"), load_target(TARGET), untrained)
    require_fit(load_recipe("digits"), load_target("local"), untrained)


def test_weights_that_the_flash_does_not_hold_are_refused_by_number(untrained: Graph) -> None:
    with pytest.raises(
        InputError, match=r"9,332 weights take 36\.5 KiB of flash, and target cortex-m4f has 32\.0 KiB; lower network\.width"
    ) as caught:
        require_fit(load_recipe("digits"), _small(32, "flash"), untrained)
    assert caught.value.exit_code == 2
    way_out = """, or ask for int8, which takes about a quarter: --set 'export.precisions=["int8"]'"""
    assert str(caught.value).endswith(f"raise train.sparsity{way_out}")
    no_int8 = _small(32, "flash").model_copy(update={"precisions": {}})
    with pytest.raises(InputError, match=r"raise train\.sparsity$"):
        require_fit(load_recipe("digits"), no_int8, untrained)
    require_fit(load_recipe("digits", ["train.sparsity=0.9"]), _small(32, "flash"), untrained)
    with pytest.raises(InputError, match=r"49,116 weights take 191\.9 KiB of flash, and gates\.flash_kib has 100\.0 KiB"):
        require_fit(load_recipe("digits", ["train.sparsity=0", "gates.flash_kib=100"]), load_target(TARGET), untrained)


def test_activations_are_refused_by_number_where_no_channel_is_removed(untrained: Graph) -> None:
    element = ["train.sparse.granularity=element"]
    with pytest.raises(InputError, match=r"the activations take \d\.\d KiB of RAM, and target cortex-m4f has 1\.0 KiB"):
        require_fit(load_recipe("digits", element), _small(1, "ram"), untrained)
    require_fit(load_recipe("digits"), _small(1, "ram"), untrained)  # channels: only training tells


def test_gates_of_a_microcontroller_need_one(untrained: Graph) -> None:
    with pytest.raises(InputError, match=r"gates\.ram_kib is about a microcontroller, and target local is none"):
        require_fit(load_recipe("digits", ["gates.ram_kib=8"]), load_target("local"), untrained)


def test_the_smaller_of_gate_and_memory_decides() -> None:
    target = load_target(TARGET)
    assert limit_kib(load_recipe("digits"), target, "ram") == (128, "target cortex-m4f")
    assert limit_kib(load_recipe("digits", ["gates.ram_kib=8"]), target, "ram") == (8, "gates.ram_kib")
    assert limit_kib(load_recipe("digits", ["gates.flash_kib=4096"]), target, "flash") == (512, "target cortex-m4f")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "c"', 'name = "onnxruntime"', "a microcontroller has no runtime"),
        ("c_source = true", "c_source = false", "runs the network as C"),
        ('unit = "KiB", source = "datasheet", note', 'unit = "KB", source = "datasheet", note', r"needs device\.facts\.ram in KiB"),
        ('"-mthumb"', '"-Wl,-x"', "compiler_options"),
        (
            'compiler_options = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]',
            "",
            r"needs device\.compiler_options",
        ),
        ("[precisions.int8]", '[precisions.fp16]\ncontract = "fp16"\n\n[precisions.int8]', "computes in float32 or on 8-bit integers"),
        ('contract = "int8"', 'contract = "int8-tensorrt"', "have another form"),
    ],
)
def test_a_target_that_no_microcontroller_is_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (Path(__file__).parents[2] / "targets" / f"{TARGET}.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=words):
        load_target(str(tmp_path / "mine.toml"))


def _footprint(flash: int, ram: int) -> CFootprint:
    return CFootprint(
        flash_bytes=flash, constant_bytes=flash - 100, code_bytes=100, ram_bytes=ram, stack_bytes=None, compiler="gcc", options=("-O2",)
    )


def _facts(footprint: CFootprint | None, *, written: bool = True, target: str = TARGET, int8: CFootprint | None = None) -> Facts:
    """Returns what the gates of memory look at."""
    sizes = {"files": ("model.c",), "constant_bytes": 1, "static_bytes": 1} if written else {}
    record = CSourceRecord(written=written, reason="" if written else "no", footprint=footprint, **sizes)
    second = None if int8 is None else record.model_copy(update={"footprint": int8})
    return cast(Facts, SimpleNamespace(target_toml=load_target(target).to_toml(), c_source=record, c_int8=second))


def test_what_the_linker_says_is_a_gate() -> None:
    recipe = load_recipe("digits", ["gates.ram_kib=2"])
    passed = memory_gates(recipe, _facts(_footprint(512 * 1024, 2048)))
    assert [(gate.name, gate.got, gate.passed) for gate in passed] == [("flash", "512.0 KiB", True), ("RAM", "2.0 KiB", True)]
    missed = memory_gates(recipe, _facts(_footprint(512 * 1024 + 1, 2049)))
    assert [gate.passed for gate in missed] == [False, False]
    assert [gate.wanted for gate in missed] == ["at most 512 KiB, target cortex-m4f", "at most 2 KiB, gates.ram_kib"]
    assert [gate.passed for gate in memory_gates(recipe, _facts(None))] == [None, None]  # no compiler here: neither passed nor failed
    assert [gate.passed for gate in memory_gates(recipe, _facts(None, written=False))] == [False, False]
    assert memory_gates(recipe, _facts(None, target="local")) == []
    both = _facts(_footprint(300 * 1024, 2049), int8=_footprint(100 * 1024, 1024))
    for chosen, flash in (("", "100.0 KiB"), ("int8-c", "100.0 KiB"), ("sequential", "300.0 KiB")):
        assert memory_gates(recipe, both, chosen)[0].got == flash


def test_where_int8_is_asked_for_it_is_what_must_fit(untrained: Graph) -> None:
    found = memory_gates(load_recipe("digits"), _facts(_footprint(600 * 1024, 2048), int8=_footprint(150 * 1024, 512)))
    assert [(gate.got, gate.passed) for gate in found] == [("150.0 KiB", True), ("0.5 KiB", True)]
    asked = ['export.precisions=["int8"]']
    require_fit(load_recipe("digits", asked), _small(32, "flash"), untrained)  # 9,332 weights of one byte
    with pytest.raises(InputError, match=r"9,332 weights take 9\.1 KiB of flash, and target cortex-m4f has 8\.0 KiB"):
        require_fit(load_recipe("digits", asked), _small(8, "flash"), untrained)
    element = [*asked, "train.sparse.granularity=element"]
    require_fit(load_recipe("digits", element), _small(1, "ram"), untrained)
    with pytest.raises(InputError, match=r"the activations take 0\.\d KiB of RAM, and target cortex-m4f has 0\.2 KiB"):
        require_fit(load_recipe("digits", element), _small(0.25, "ram"), untrained)


def test_the_terminal_shows_flash_ram_and_stack_in_one_line() -> None:
    line = footprint_line(_footprint(20_480, 1024).model_dump(mode="json"))
    assert line == "model.c: flash 20.0 KiB (19.9 constants, 0.1 code), RAM 1.0 KiB, stack not bounded (gcc, -O2)"


def test_the_terminal_counts_alarms_and_what_the_device_certifies() -> None:
    found = {"finished": True, "inputs": (0.0, 1.0), "found": (), "reached": 3, "statements": 3, "tool": "Frama-C"}
    for alarms, words in ((0, "0 alarms for"), (1, "1 alarm for"), (2, "2 alarms for")):
        assert words in analysis_line({**found, "alarms": alarms}, "model.c")
    live = {"epsilon": "0.05", "samples": 200, "certified": 150, "right": 149}
    line = "live: at epsilon 0.05 the device certifies 75.0 % of 200 test samples by itself, 74.5 % with the right class"
    assert live_line(live, None) == line
    assert live_line(live, 0.8) == f"{line} (offline 80.0 %)"
