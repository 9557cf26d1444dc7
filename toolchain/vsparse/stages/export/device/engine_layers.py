"""What a TensorRT engine says about the arithmetic of its layers, against what a contract demands (docs/numerics.md, section 7.6)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

# Kernels that no contract covers, by what their names say.
NEVER = (
    ("Winograd", re.compile(r"winograd|wngd")),
    ("FFT", re.compile(r"(?<![a-z])fft")),
    ("TF32", re.compile(r"tf32")),
)
# What a kernel name says about its arithmetic; an fp32 engine may show none of these.
REDUCED_KERNEL = (
    ("tensor-core", re.compile(r"hmma|imma|tensorop|[hsi](?:884|1688|16816|8816|16832)|tensor\d+x\d+x\d+")),
    ("reduced-precision", re.compile(r"(?<![a-z0-9])b?f16|fp16|bf16|half|int8|fp8|(?<![a-z0-9])i8i8")),
)
# Types of tensors and weights as reports write them: "Row major linear FP32", "Half", "… vectorized row major Int8 format".
TYPES = (
    ("bf16", re.compile(r"\bbf16\b|\bbfloat16\b")),
    ("fp16", re.compile(r"\bfp16\b|\bhalf\b")),
    ("int8", re.compile(r"\bu?int8\b")),
    ("another format", re.compile(r"\bfp8\b|\bint4\b|\bfp4\b|\bfp8e\dm\d\b|\be\dm\d\b")),
    ("fp32", re.compile(r"\bfp32\b|\bfloat\b")),
)
INDICES = re.compile(r"\bint32\b|\bint64\b|\bbool\b")
# Names of kernels: formats of input and output, of products and accumulator, and of what the sum is scaled and stored with.
FORMAT = r"(tf32|bf16|f16|f32|f64|i8|u8|i32|e4m3|e5m2)"
STATED = re.compile(rf"(?<![a-z0-9]){FORMAT}{FORMAT}_{FORMAT}{FORMAT}_{FORMAT}(?![a-z0-9])")
# Shorter names: formats of input and output, of the accumulator, and of what the sum is scaled with; products are of the input's format.
SHORT = re.compile(r"(?<![a-z0-9])(f16|f32)(f16|f32)_(f16|f32)_(f16|f32)(?![a-z0-9])")
# Kernels of multiply-adds that name each format that they hold, and none is another than float32.
ALL_FLOAT = re.compile(
    r"^sm\d+_xmma_(?!.*(?:f16|fp16|half|mma_|int8|fp8))(?:conv_fprop_fused_conv_act_fp32.*_accfloat_|convolution_trt_depthwisefp32)"
)
# Older names, where a letter before the tile of a matrix unit, or before the library, is the type that products are summed in.
OLDER = (
    (re.compile(r"imma|i8816|i16832|icudnn|(?<![a-z0-9])(?:int8int8|i8i8)(?![a-z0-9])"), ("i8", "i32", "f32")),
    (re.compile(r"(?<![a-z0-9])h(?:884|1688|16816|cudnn|gemm)"), ("f16", "f16", "f16")),
    (re.compile(r"(?<![a-z0-9])s(?:884|1688|16816)"), ("f16", "f32", "f32")),
    (re.compile(r"(?<![a-z0-9])s(?:cudnn|gemm)"), ("f32", "f32", "f32")),
)
# Layers that add up products, those that add up values, and those that do neither.
PRODUCTS = re.compile(r"conv|gemm|matrixmultiply|matmul|fullyconnected|^fusion$")
POOLS = re.compile(r"pool|^reduce$")
OTHERS = re.compile(
    r"reformat|^noop$|shuffle|constant|slice|concat|^copy|padding|identity|^cast$|^scale$|activation|pointwise|elementwise|unary|quantize"
)
GENERATED = re.compile(r"myelin|kgen|foreign|(?<![a-z])myl|(?<![a-z])mye\d")
# Code of Myelin's generator is named after the operators in it, each cut to three or four letters, and a hash. Those that compute each
# value from one value of each input, in the type of tensors or a better one, or move values: no sum, no product of many.
GENERATED_NAME = re.compile(r"^__myl_((?:[A-Z][a-z]+)+?)_0x[0-9a-f]+$")
VALUE_BY_VALUE = re.compile(r"(?:Add|Sub|Mul|Div|Neg|Abs|Max|Min|Relu?|Cast?|Move?|Resh?|Tran?|Slic?|Repl?|Conc|Roun?)$")

# What the names of nodes and tensors of a certifying file begin with that are not the network's.
CERTIFYING_PREFIX = "certify."

# (products, accumulator, scaling) that a contract allows a sum of products.
HALF_SUMS = {("f16", "f32", "f32")}
ALLOWED = {
    "fp32": {("f32", "f32", "f32")},
    "fp16": HALF_SUMS,
    "fp16-tensorrt": HALF_SUMS | {("f32", "f32", "f32")},
    "fp16-accumulate": HALF_SUMS | {("f16", "f16", "f16"), ("f16", "f32", "f16"), ("f16", "f16", "f32")},
    "int8-tensorrt": {("i8", "i32", "f32"), ("f32", "f32", "f32")},
}
# Types that tensors and weights may have.
TENSORS = {
    "fp32": {"fp32"},
    "fp16": {"fp32", "fp16"},
    "fp16-tensorrt": {"fp32", "fp16"},
    "fp16-accumulate": {"fp32", "fp16"},
    "int8-tensorrt": {"fp32", "int8"},
}
# What a sum of products may read.
OPERANDS = {**TENSORS, "fp16": {"fp16"}, "fp16-accumulate": {"fp16"}}


def parse_layers(text: str) -> list[Any]:
    """Returns the layers of an engine inspector's JSON; an empty list where it is not readable."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    layers = document.get("Layers") if isinstance(document, dict) else document
    return layers if isinstance(layers, list) else []


def layer_faults(layers: list[Any], contract: str = "fp32", unrounded: Sequence[str] = ()) -> list[str]:
    """Returns every reason why an engine's layers do not show the arithmetic of a contract; an empty list means that they do.

    Whatever says nothing is a fault: a layer by name alone, of a type that is not known, from Myelin's generator, or a sum of products
    whose kernel does not name the formats that it multiplies and adds in. `unrounded` names those of the model's input and output that
    its file keeps in float32 where it stores float16: no layer may round them (docs/numerics.md, section 8.3).
    """
    if contract not in ALLOWED:
        return [f"no engine of TensorRT is read under the contract {contract}"]
    if not layers:
        return ["the engine names no layers, so its arithmetic cannot be read back"]
    faults = []
    for layer in layers:
        if not isinstance(layer, dict):
            faults.append(f'layer "{str(layer)[:80]}" is named only; the engine must be built with detailed profiling verbosity')
            continue
        faults += ['layer "{}" {}'.format(str(layer.get("Name", "?"))[:120], fault) for fault in one_layer(layer, contract)]
    return (
        faults + (split_faults(layers) if contract == "fp16" else []) + [one for name in unrounded for one in rounded_faults(layers, name)]
    )


def certifying_faults(layers: list[Any], contract: str, unrounded: Sequence[str] = ()) -> list[str]:
    """Returns why layers do not show a network under a contract on fp16 or int8 with, beside it, bounds in fp32.

    What certifies is known by the names of its nodes and tensors (docs/numerics.md, sections 15.8 and 15.9). A layer that computes both is
    a fault, as no one format is its own.
    """
    own: list[Any] = []
    others: list[Any] = []
    faults = []
    for layer in layers:
        names = onnx_nodes(layer) if isinstance(layer, dict) else []
        certifies = [CERTIFYING_PREFIX in name for name in names]
        if any(certifies) and not all(certifies):
            faults.append('layer "{}" computes what certifies together with the network'.format(str(layer.get("Name", "?"))[:120]))
        (own if any(certifies) else others).append(layer)
    if layers and not own:
        faults.append("no layer is named after what certifies, so its arithmetic cannot be read back")
    of_network = layer_faults(others, contract)
    ends = [one for name in unrounded for one in rounded_faults(layers, name)]
    return faults + of_network + ends + (layer_faults(own, "fp32") if own else [])


def onnx_nodes(layer: dict[str, Any]) -> list[str]:
    """Returns the names of the ONNX nodes that a layer computes; where it names none, the parts of its own, or else of its results."""
    found = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
    if found:
        return found
    parts = str(layer.get("Name", "")).split(" + ")
    made = [str(one.get("Name", "")) for one in layer.get("Outputs") or [] if isinstance(one, dict)]
    return parts if any(CERTIFYING_PREFIX in part for part in parts) else made


def rounded_faults(layers: list[Any], end: str) -> list[str]:
    """Returns where an engine may round its input, or its output, to float16: followed through what adds nothing up, up to sums.

    What does not say the format of a tensor on that way, or ends before a sum, is a fault too.
    """
    tensors: list[tuple[dict[str, Any], list[Any], list[Any]]] = []
    for layer in layers:
        if isinstance(layer, dict):
            inputs, outputs = ([one for one in layer.get(side) or [] if isinstance(one, dict)] for side in ("Inputs", "Outputs"))
            tensors.append((layer, inputs, outputs))
    forward = not any(one.get("Name") == end for _, _, outputs in tensors for one in outputs)
    pending, seen, faults, reached = [end], set(), [], False
    while pending:
        name = pending.pop()
        seen.add(name)
        for layer, inputs, outputs in tensors:
            here, there = (inputs, outputs) if forward else (outputs, inputs)
            if not any(one.get("Name") == name for one in here):
                continue
            kind, tactic = str(layer.get("LayerType", "")).lower(), str(layer.get("TacticName", "")).lower()
            where, sums = 'layer "{}" '.format(str(layer.get("Name", "?"))[:120]), PRODUCTS.search(kind)
            ends = STATED.search(tactic) or SHORT.search(tactic)
            if any(one.get("Name") == name and type_of(shown_type(one)) != "fp32" for one in here):
                faults.append(where + f'has "{name[:120]}" in another format than fp32, in which the file keeps it')
            elif sums and forward and kernel_formats(tactic) != ("f32", "f32", "f32"):
                faults.append(where + f'multiplies "{name[:120]}" in another format than fp32, in which the file keeps it')
            elif sums and ends and ends.group(1 if forward else 2) != "f32":
                faults.append(where + f'has "{name[:120]}" in fp32, and a kernel of another format ({layer["TacticName"]})')
            elif sums or (forward and averages(layer, kind)):
                reached = True
            else:
                if "Cas" in re.findall("[A-Z][a-z]{2}", str(layer.get("TacticName") or "")) and GENERATED_NAME.match(
                    str(layer["TacticName"])
                ):
                    faults.append(where + f'converts "{name[:120]}" on the way, which the file keeps in fp32')
                for one in there:
                    kept, other = type_of(shown_type(one)), str(one.get("Name"))
                    if kept == "fp32" and other not in seen:
                        pending.append(other)
                    elif kept != "fp32" and not INDICES.search(shown_type(one).lower()):
                        faults.append(where + f'has "{other[:120]}" in another format than fp32, in which the file keeps it')
    if not any(one.get("Name") == end for _, inputs, outputs in tensors for one in inputs + outputs):
        faults.append(f'no layer names "{end[:120]}", which the file keeps in fp32')
    elif not (faults or reached):
        faults.append(f'no sum is named between which and "{end[:120]}" all is in fp32, in which the file keeps it')
    return faults


def averages(layer: dict[str, Any], kind: str) -> bool:
    """Returns whether a layer is an average."""
    return bool(POOLS.search(kind)) and ("AVERAGE" in str(layer.get("PoolingType", "")).upper() or kind == "reduce")


def split_faults(layers: list[Any]) -> list[str]:
    """Returns where a product of float16 numbers is stored before its bias is added: two layers of one ONNX node, or an unnamed addition.

    Where the file types sums as float32 the addition is one in float32, and under fp16-accumulate its rounding is charged.
    """
    products: set[str] = set()
    faults = []
    for layer in layers:
        if isinstance(layer, dict) and PRODUCTS.search(str(layer.get("LayerType", "")).lower()):
            products |= set(re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", ""))))
    for layer in layers:
        if not isinstance(layer, dict) or PRODUCTS.search(str(layer.get("LayerType", "")).lower()):
            continue
        name, nodes = str(layer.get("Name", "?"))[:120], re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
        adds = re.search(r"Add|Sum", str(layer.get("TacticName") or "")) or str(layer.get("LayerType", "")).lower() == "elementwise"
        if (adds and products & set(nodes)) or re.search(r"\(Unnamed Layer\* \d+\) \[ElementWise\]", name):
            faults.append(f'layer "{name}" adds a bias to a product that was rounded to fp16 before')
    return faults


def one_layer(layer: dict[str, Any], contract: str) -> list[str]:
    """Returns what is wrong with one layer under a contract."""
    kind, tactic = str(layer.get("LayerType", "")).lower(), str(layer.get("TacticName", "")).lower()
    stated = layer.get("TacticName") or layer.get("LayerType")
    faults = []
    for what, pattern in NEVER + (REDUCED_KERNEL if contract == "fp32" else ()):
        if pattern.search(tactic) or pattern.search(kind):
            faults.append(f"uses a {what} tactic ({stated})")
            break
    seen: dict[str, set[str]] = {"Inputs": set(), "Outputs": set()}
    for side in seen:
        for tensor in layer.get(side) or []:
            shown = shown_type(tensor)
            found = type_of(shown)
            seen[side].add(found)
            if found and found not in TENSORS[contract]:
                faults.append(
                    f"has a tensor in reduced precision ({shown})" if contract == "fp32" else f"has a tensor in {found} ({shown})"
                )
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        found = type_of(str(weights.get("Type", "")))
        if found and found not in TENSORS[contract]:
            faults.append("keeps its weights in {}".format(weights["Type"]))
    if kind in ("gemm", "fusion") or PRODUCTS.search(kind):
        # Myelin lists the factors of a product and of what is added, alpha and beta, as inputs of one number.
        operands = [tensor for tensor in layer.get("Inputs") or [] if not isinstance(tensor, dict) or tensor.get("Dimensions") != [1]]
        faults += product_faults(layer, contract, tactic, {type_of(shown_type(tensor)) for tensor in operands})
    elif kind == "shape_call" and not layer.get("Inputs") and not layer.get("Outputs"):
        pass  # computes sizes, and touches no tensor
    elif GENERATED.search(kind) or GENERATED.search(str(layer.get("Name", "")).lower()):
        faults += generated_faults(layer)
    elif POOLS.search(kind):
        faults += pool_faults(layer, contract, kind, tactic, seen["Inputs"])
    elif not OTHERS.search(kind):
        faults.append("is of the type {}, of which nothing is known".format(layer.get("LayerType") or '""'))
    return faults


def generated_faults(layer: dict[str, Any]) -> list[str]:
    """Returns what is wrong with code of Myelin's generator: whatever its name does not show to compute value by value."""
    stated = layer.get("TacticName") or layer.get("LayerType")
    named = GENERATED_NAME.match(str(layer.get("TacticName") or ""))
    operators = re.findall(r"[A-Z][a-z]+", named.group(1)) if named else []
    if str(layer.get("LayerType", "")).lower() != "kgen" or not operators:
        return [f"comes from Myelin's generator ({stated}), which does not say what it computes"]
    others = [one for one in operators if not VALUE_BY_VALUE.match(one)]
    if others:
        return [f"comes from Myelin's generator ({stated}), and does not say how it computes {others[0]}"]
    if not all(type_of(shown_type(tensor)) for side in ("Inputs", "Outputs") for tensor in layer.get(side) or [{}]):
        return [f"comes from Myelin's generator ({stated}), and does not say the types of its tensors"]
    return []


def product_faults(layer: dict[str, Any], contract: str, tactic: str, read: set[str]) -> list[str]:
    """Returns what is wrong with a sum of products."""
    if not tactic:
        return ["is a {} that does not name its tactic".format("convolution" if "conv" in str(layer["LayerType"]).lower() else "product")]
    found = kernel_formats(tactic)
    if found is None:
        return ["uses a kernel that does not say how it multiplies and adds ({})".format(layer["TacticName"])]
    faults = []
    if found not in ALLOWED[contract]:
        faults.append(
            "multiplies in {}, adds in {} and scales in {} ({}), which the contract {} does not allow".format(
                found[0], found[1], found[2], layer["TacticName"], contract
            )
        )
    if read - {""} - OPERANDS[contract]:
        faults.append("multiplies {}, and the model's file says another format".format(" and ".join(sorted(read - {""}))))
    return faults


def pool_faults(layer: dict[str, Any], contract: str, kind: str, tactic: str, read: set[str]) -> list[str]:
    """Returns what is wrong with a pool: a maximum rounds nothing, and an average of reduced formats must say what it adds in."""
    if not averages(layer, kind) or contract in ("fp32", "fp16-accumulate") or not read & {"fp16", "int8"}:
        return []
    if contract == "fp16" and not re.search(r"fp16fp32|f16f32", tactic):
        return ["averages in fp16 and does not say that it adds in fp32 ({})".format(layer.get("TacticName") or "no tactic")]
    if contract == "int8-tensorrt" and (not tactic or re.search(r"fp16|f16|half", tactic)):
        return ["averages in int8 and does not say what it adds in ({})".format(layer.get("TacticName") or "no tactic")]
    return []


def shown_type(tensor: Any) -> str:
    """Returns how a report writes a tensor's type."""
    if not isinstance(tensor, dict):
        return ""
    return " ".join(str(tensor[key]) for key in ("Format/Datatype", "Format", "Datatype", "DataType") if tensor.get(key))


def type_of(text: str) -> str:
    """Returns the type that a report's text names, the least precise one; an empty text for none, or integers of indices."""
    return next((name for name, pattern in TYPES if pattern.search(text.lower())), "")


def kernel_formats(tactic: str) -> tuple[str, str, str] | None:
    """Returns the formats that a kernel's name states, of products, accumulator and scaling; None where it states none."""
    stated = STATED.search(tactic)
    if stated:
        return stated.group(3), stated.group(4), stated.group(5)
    short = SHORT.search(tactic)
    if short:
        return short.group(1), short.group(3), short.group(4)
    if ALL_FLOAT.search(tactic):
        return "f32", "f32", "f32"
    return next((formats for pattern, formats in OLDER if pattern.search(tactic)), None)
