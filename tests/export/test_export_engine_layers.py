"""Layer reports of TensorRT 8.5 to 11.4: each accepted or refused as its contract says; the sources stand beside the data."""

import json
from pathlib import Path

import pytest

from vsparse.stages.export.device.engine_layers import ALLOWED, kernel_formats, layer_faults, parse_layers, type_of

CASES = json.loads((Path(__file__).parent / "engine_layers.json").read_text())["cases"]


def report(case: dict) -> str:
    """Returns the document as the inspector of that version writes it."""
    tensors = [{"Name": "input", "IOMode": "Input", "DataType": "Float"}] if case["schema"] == "I/O Tensors" else ["input", "logits"]
    return json.dumps({"Layers": case["layers"], case["schema"]: tensors})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tensorrt']}: {case['name']}")
@pytest.mark.parametrize("contract", ALLOWED)
def test_each_report_is_judged_as_its_contract_says(case: dict, contract: str) -> None:
    faults = layer_faults(parse_layers(report(case)), contract)
    if contract in case["accepted"]:
        assert faults == []
    else:
        assert faults
    if not case["accepted"] and contract in case.get("told_under", ALLOWED):
        assert any(case["told"] in fault for fault in faults)


def test_half_sums_are_told_where_float_ones_are_wanted() -> None:
    for case in CASES:
        if case["accepted"] == ["fp16-accumulate"]:
            assert any("adds in f16" in fault for fault in layer_faults(case["layers"], "fp16"))


def test_every_version_and_kind_is_there() -> None:
    assert {case["tensorrt"] for case in CASES} >= {"8.5", "10.3", "10.16", "11.4"}
    assert all(case["source"] for case in CASES)


@pytest.mark.parametrize(
    ("tactic", "formats"),
    [
        ("turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1", ("f16", "f16", "f16")),
        ("ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_32x6_nn", ("f16", "f32", "f32")),
        ("volta_scudnn_128x64_relu_small_nn_v1", ("f32", "f32", "f32")),
        ("trt_turing_fp32_icudnn_int8x4_128x128_relu_small_nn_v0", ("i8", "i32", "f32")),
        ("0x9f5c1fa2", None),
        ("__myl_mulsum_0xfa6c", None),
        ("", None),
    ],
)
def test_what_a_kernel_says_of_itself(tactic: str, formats: tuple[str, str, str] | None) -> None:
    assert kernel_formats(tactic) == formats


def test_the_least_precise_type_of_a_text_counts() -> None:
    assert type_of("Row major linear FP32 format (kLINEAR) Half") == "fp16"
    assert type_of("Thirty-two wide channel vectorized row major Int8 format") == "int8"
    assert type_of("Int32") == ""


def test_a_contract_that_no_engine_is_read_under_is_refused() -> None:
    assert "no engine" in layer_faults([], "sequential")[0]


def tensor(name: str, shown: str = "Row major linear FP32") -> dict[str, object]:
    return {"Name": name, "Dimensions": [1, 4, 1, 1], **({"Format/Datatype": shown} if shown else {})}


def product(read: dict[str, object], made: dict[str, object], formats: str) -> dict[str, object]:
    tactic = f"sm80_xmma_fprop_implicit_gemm_{formats}_nhwc"
    return {"Name": formats, "LayerType": "CaskConvolution", "Inputs": [read], "Outputs": [made], "TacticName": tactic}


FIRST = product(tensor("input"), tensor("h", "Row major linear FP16"), "f32f32_f32f32_f32")
LAST = product(tensor("h", "Row major linear FP16"), tensor("logits"), "f16f32_f16f32_f32")
HALVED = product(tensor("q", "Row major linear FP16"), tensor("h", "Row major linear FP16"), "f16f16_f16f32_f32")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([FIRST, LAST], ""),
        ([{"Name": "r", "LayerType": "Reformat", "Inputs": [tensor("input")], "Outputs": [tensor("q", "")]}, HALVED, LAST], "in another"),
        ([{"Name": "r", "LayerType": "Reformat", "Inputs": [tensor("input")], "Outputs": [tensor("p")]}, HALVED, LAST], "no sum is named"),
        (
            [
                {"LayerType": "kgen", "TacticName": "__myl_CastCast_0x12ab", "Inputs": [tensor("input")], "Outputs": [tensor("q")]},
                product(tensor("q"), tensor("h", "Row major linear FP16"), "f32f32_f32f32_f32"),
                LAST,
            ],
            "converts",
        ),
        ([FIRST, product(tensor("h", "Row major linear FP16"), tensor("logits"), "f16f16_f16f32_f32")], "a kernel of another format"),
        (
            [{"LayerType": "CaskPooling", "PoolingType": "AVERAGE", "Inputs": [tensor("input")], "Outputs": FIRST["Outputs"]}, LAST],
            "",
        ),
    ],
)
def test_ends_in_float32_are_followed_up_to_sums_by_what_layers_say(layers: list[dict[str, object]], words: str) -> None:
    found = "; ".join(layer_faults(layers, "fp16-tensorrt", ("input", "logits")))
    assert words in found if words else not found
