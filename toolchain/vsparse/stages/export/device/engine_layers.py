"""What a TensorRT engine says about the arithmetic of its layers."""

from __future__ import annotations

import json
import re
from typing import Any

# What a kernel name says about its arithmetic; an fp32 engine may show none of these.
FORBIDDEN_FP32 = (
    ("Winograd", re.compile(r"winograd")),
    ("FFT", re.compile(r"(?<![a-z])fft")),
    ("TF32", re.compile(r"tf32")),
    ("tensor-core", re.compile(r"hmma|imma|tensorop|[hsi](?:884|1688|16816|8816|16832)|tensor\d+x\d+x\d+")),
    ("reduced-precision", re.compile(r"(?<![a-z0-9])b?f16|fp16|bf16|half|int8|fp8|(?<![a-z0-9])i8i8")),
)
REDUCED_FORMAT = re.compile(r"\b(?:fp16|half|bf16|bfloat16|int8|fp8|int4|fp4)\b")
CONVOLUTION = re.compile(r"conv")


def parse_layers(text: str) -> list[Any]:
    """Returns the layers of an engine inspector's JSON; an empty list where it is not readable."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    layers = document.get("Layers") if isinstance(document, dict) else document
    return layers if isinstance(layers, list) else []


def layer_faults(layers: list[Any]) -> list[str]:
    """Returns every reason why an engine's layers do not show plain fp32 dot products; an empty list means that they do."""
    if not layers:
        return ["the engine names no layers, so its arithmetic cannot be read back"]
    faults = []
    for layer in layers:
        if not isinstance(layer, dict):
            faults.append(f'layer "{str(layer)[:80]}" is named only; the engine must be built with detailed profiling verbosity')
            continue
        name = str(layer.get("Name", "?"))[:120]
        kind, tactic = str(layer.get("LayerType", "")).lower(), str(layer.get("TacticName", "")).lower()
        for what, pattern in FORBIDDEN_FP32:
            if pattern.search(tactic) or pattern.search(kind):
                faults.append('layer "{}" uses a {} tactic ({})'.format(name, what, layer.get("TacticName") or layer.get("LayerType")))
                break
        for side in ("Inputs", "Outputs"):
            for tensor in layer.get(side) or []:
                shown = (
                    " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Format", "Datatype", "DataType"))
                    if isinstance(tensor, dict)
                    else ""
                )
                if REDUCED_FORMAT.search(shown.lower()):
                    faults.append(f'layer "{name}" has a tensor in reduced precision ({shown.strip()})')
        weights = layer.get("Weights")
        if isinstance(weights, dict) and REDUCED_FORMAT.search(str(weights.get("Type", "")).lower()):
            faults.append('layer "{}" keeps its weights in {}'.format(name, weights["Type"]))
        if CONVOLUTION.search(kind) and not tactic:
            faults.append(f'layer "{name}" is a convolution that does not name its tactic, which may be Winograd')
    return faults
