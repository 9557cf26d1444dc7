"""The shipped targets: every number sourced, every contract honest."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from vsparse.contract import contract
from vsparse.errors import InputError
from vsparse.processor import require_kept
from vsparse.schema import validate
from vsparse.shipped import shipped_directory, shipped_names
from vsparse.stages.export.c_source.costs import COSTS as KERNEL_COSTS
from vsparse.stages.export.c_source.costs import costs_of
from vsparse.target import Fact, Target, load_target, target_of

NAMES = shipped_names("targets")
JETSONS = [name for name in NAMES if name.startswith("jetson")]
# From NVIDIA's table of CUDA compute capabilities; 2:4 sparsity came with 8.0.
CAPABILITY = {"nvidia,tegra194": "7.2", "nvidia,tegra234": "8.7", "nvidia,tegra264": "11.0"}


def test_the_promised_targets_are_shipped() -> None:
    assert {"local", "raspberry-pi-5", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-xavier-nx", "jetson-thor"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_target_is_whole(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert not contract(target.default_contract).exact
    assert target.device.facts == {} or target.sources
    for key, fact in target.device.facts.items():
        assert fact.value > 0, key
        assert fact.unit, key
        assert fact.source != "measured", f"{key}: nothing was measured on this device"
        assert fact.source != "estimate" or fact.note, f"{key}: an estimate says how it was made"
    resolved = validate(Target, tomllib.loads(target.to_toml()), "resolved")
    assert resolved == target


@pytest.mark.parametrize("name", JETSONS)
def test_jetsons_state_what_the_contract_hangs_on(name: str) -> None:
    target = load_target(name)
    assert target.runtime.name == "tensorrt"
    assert target.device.compute_capability == CAPABILITY[target.device.soc]
    assert target.device.structured_sparsity_2_4 == (float(target.device.compute_capability) >= 8)
    assert target.device.modules
    assert target.device.power_rails
    strong = name != "jetson-xavier-nx"  # TensorRT 8.5 has none
    assert {name: one.contract for name, one in target.precisions.items()} == {
        "fp32": "fp32",
        "fp16": "fp16-tensorrt" if strong else "fp16-accumulate",
        "int8": "int8-tensorrt",
    }
    assert target.types_tensors == strong
    assert all(("strongly typed" in one.conditions[0]) == strong for one in target.precisions.values())
    assert all("read" in " ".join(one.conditions) for one in target.precisions.values())
    text = " ".join(target.precisions["fp32"].conditions)
    assert "TF32 is cleared" in text
    assert "Winograd" in text
    facts = target.device.facts
    for suffix in ("", "_super"):
        if f"int8_sparse_2_4{suffix}" in facts:  # twice the dense rate, as far as rounding goes
            assert abs(facts[f"int8_sparse_2_4{suffix}"].value - 2 * facts[f"int8_dense{suffix}"].value) <= 1.01


def test_no_two_jetsons_claim_one_module() -> None:
    modules = [module for name in JETSONS for module in load_target(name).device.modules]
    assert len(modules) == len(set(modules))


def test_derived_numbers_of_the_raspberry_pi_follow_from_its_data() -> None:
    facts = load_target("raspberry-pi-5").device.facts
    assert facts["memory_bandwidth"].value == pytest.approx(facts["memory_rate"].value * 4 / 1000, rel=0.01)
    assert facts["fp32_peak"].value == pytest.approx(facts["cpu_cores"].value * facts["cpu_clock"].value * 2 * 4 * 2)


def test_every_file_in_the_folder_is_a_target() -> None:
    assert sorted(path.stem for path in shipped_directory("targets").iterdir()) == NAMES


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a target in dotted form; a table of named entries is written <name>."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = [argument for argument in (field.annotation, *get_args(field.annotation)) if isinstance(argument, type)]
        section = next((argument for argument in inner if issubclass(argument, BaseModel)), None)
        if section is None:
            found.append(prefix + name)
        elif section is Fact:
            found.append(f"{prefix}{name}.<name>")
        else:
            whole = section is field.annotation or type(None) in get_args(field.annotation)
            found += keys(section, f"{prefix}{name}." if whole else f"{prefix}{name}.<name>.")
    return found


def test_the_reference_names_every_key_and_no_other() -> None:
    text = (shipped_directory("targets").parent / "docs" / "reference-target.md").read_text()
    table = text.split("## Keys")[1].split("##")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == keys(Target)
    assert not [name for name in NAMES if f"`{name}`" not in text]


def test_the_references_own_target_loads(tmp_path: Path) -> None:
    text = (shipped_directory("targets").parent / "docs" / "reference-target.md").read_text()
    path = tmp_path / "my-board.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    assert load_target(str(path)).default_contract == "fp32"


COSTS = """[kernel_costs]
lanes = 4
position = [0.4, 0.7, 1.0, 1.3, 1.6, 1.9]
store = 0.0
point = [1, 1, 1, 1, 1, 1]
dense_row = 1.0
listed_row = 1.0
sparse_row = 4.0
"""


def test_a_target_may_state_what_kernels_cost(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    base = '[device]\nkind = "host"\n[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "fp32"\n'
    path.write_text(base)
    assert costs_of(load_target(str(path)).kernel_costs) is KERNEL_COSTS
    assert "kernel_costs" not in load_target(str(path)).to_toml()
    path.write_text(base + COSTS)
    target = load_target(str(path))
    costs = costs_of(target.kernel_costs)
    assert (costs.lanes, costs.position[1], costs.position[6], costs.sparse_row) == (4, 0.4, 1.9, 4.0)
    assert target_of(target.to_toml()) == target
    mistakes = {"lanes = 4": "lanes = 5", "store = 0.0": "store = -1", "1.6, 1.9": "1.6", "dense_row = 1.0": "dense_row = nan"}
    for wrong, said in mistakes.items():
        path.write_text(base + COSTS.replace(wrong, said))
        with pytest.raises(InputError, match=r"kernel_costs\."):
            load_target(str(path))
    board = (shipped_directory("targets") / "cortex-m4f.toml").read_text()
    path.write_text(board + COSTS)
    with pytest.raises(InputError, match="kernels with vectors"):
        load_target(str(path))


def test_a_mistake_in_a_target_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    base = '[device]\nkind = "host"\n[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "fp32"\n'
    path.write_text(base)
    assert load_target(str(path)).name == "t"
    for text, words in (
        (base.replace('kind = "host"', 'kind = "host"\npower_mode = ["x"]'), 'did you mean "power_modes"'),
        (base.replace('contract = "fp32"', 'contract = "real"'), "not a contract of a device"),
        (base.replace('contract = "fp32"', 'contract = "fp31"'), "not a contract of a device"),
        (base.replace("onnxruntime", "tflite"), "runtime.name"),
        (base.split("[precisions")[0], "precisions"),
        (base + '[device.facts.memory]\nvalue = 8\nunit = "GB"\nsource = "guess"\n', "source"),
        (base + '[device.facts.memory]\nvalue = inf\nunit = "GB"\nsource = "estimate"\n', "value"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(words)):
            load_target(str(path))
    with pytest.raises(InputError, match='did you mean "jetson-thor"'):
        load_target("jetson-thorr")


def half_precision(kind: str, runtime: str, rules: str) -> dict[str, object]:
    return {
        "name": "half",
        "device": {"kind": kind},
        "runtime": {"name": runtime},
        "precisions": {"fp32": {"contract": "fp32"}, "fp16": {"contract": rules}},
    }


@pytest.mark.parametrize("kind", ["jetson", "raspberry-pi"])
def test_float16_added_in_float32_is_not_offered_where_onnx_runtime_adds_in_float16(kind: str) -> None:
    with pytest.raises(InputError, match='adds float16 numbers in float16 on aarch64: choose "fp16-chain"'):
        validate(Target, half_precision(kind, "onnxruntime", "fp16"), "target")
    assert validate(Target, half_precision(kind, "onnxruntime", "fp16-accumulate"), "target").offered().precisions.keys() == {
        "fp32",
        "fp16",
    }
    assert validate(Target, half_precision(kind, "tensorrt", "fp16"), "target").offered().precisions.keys() == {"fp32", "fp16"}


@pytest.mark.parametrize(("runtime", "ours", "theirs"), [("onnxruntime", "int8", "int8-tensorrt"), ("tensorrt", "int8-tensorrt", "int8")])
def test_a_contract_on_integers_belongs_to_its_runtime(runtime: str, ours: str, theirs: str) -> None:
    def with_integers(rules: str) -> dict[str, object]:
        content = half_precision("jetson", runtime, "fp16-accumulate")
        return {**content, "precisions": {"fp32": {"contract": "fp32"}, "int8": {"contract": rules}}}

    assert validate(Target, with_integers(ours), "target").precisions["int8"].contract == ours
    with pytest.raises(InputError, match=f'precisions.int8.contract is "{theirs}".*choose "{ours}"'):
        validate(Target, with_integers(theirs), "target")


@pytest.mark.parametrize(("machine", "offers"), [("x86_64", True), ("aarch64", False), ("arm64", False)])
def test_this_machine_offers_float16_only_where_its_runtime_keeps_the_contract(
    machine: str, offers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert ("fp16" in load_target("local").precisions) == offers
    if offers:
        require_kept(contract("fp16"), "fp16")
        return
    with pytest.raises(InputError, match=f"on this processor .{machine}.*choose --contract fp16-chain, or fp16-accumulate"):
        require_kept(contract("fp16"), "fp16")
    require_kept(contract("fp16-accumulate"), "fp16")
    require_kept(contract("fp16"), "fp32")
    require_kept(contract("real"), "fp16")


def test_the_order_of_a_kernel_is_offered_where_the_runtime_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        validate(Target, half_precision("raspberry-pi", "onnxruntime", "fp16-chain"), "target").precisions["fp16"].contract == "fp16-chain"
    )
    assert load_target("raspberry-pi-5").precisions["fp16"].contract == "fp16-chain"
    with pytest.raises(InputError, match='this target is tensorrt on aarch64: choose "fp16"'):
        validate(Target, half_precision("jetson", "tensorrt", "fp16-chain"), "target")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(InputError, match='this target is onnxruntime on x86_64: choose "fp16"'):
        validate(Target, half_precision("host", "onnxruntime", "fp16-chain"), "target")
