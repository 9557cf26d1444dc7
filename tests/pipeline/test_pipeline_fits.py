"""What cannot fit a microcontroller is refused by number before it is trained, and by a gate once it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.graph.from_torch import from_torch
from vsparse.networks import make
from vsparse.pipeline.fits import limit_kib, require_fit
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
        ("[precisions.fp32]", '[precisions.int8]\ncontract = "int8"\n\n[precisions.fp32]', "computes in float32"),
    ],
)
def test_a_target_that_no_microcontroller_is_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (Path(__file__).parents[2] / "targets" / f"{TARGET}.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=words):
        load_target(str(tmp_path / "mine.toml"))
