"""The certifying file in the `device/` folder: its copy, its script, and probes with bounds that no device may exceed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.device_folder import CERTIFYING_SCRIPT, CertifyingEntry, CertifyingProbe
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.files import read_bytes, sha256_bytes, write_bytes
from vsparse.graph import Graph
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.onnx_file import MAX_ONNX_BYTES
from vsparse.graph.quantised import is_quantised
from vsparse.graph.to_onnx import INPUT, OUTPUT
from vsparse.stages.export.bundle import certifying_script
from vsparse.stages.export.certify_onnx.check import MarginBounds
from vsparse.stages.export.certify_onnx.names import CLASS, EPSILON, MARGIN

README_LINE = f"The file that certifies its own input alone: python3 device/{CERTIFYING_SCRIPT}\n"
# Radii of each probe, in those of the property.
SHARES = (Fraction(0), Fraction(1, 2), Fraction(1), Fraction(2))


@dataclass(frozen=True)
class CertifyingFile:
    """What the folder is given: the certifying file, the network that it was made of, and probe inputs float32 [n, *shape] in `clip`.

    Of a further form also its role there, and its contract with the hash of the certificate under it.
    """

    path: Path
    network: Path
    inputs: NDArray[np.float32]
    epsilon: Fraction
    clip: tuple[float, float]
    role: str = "certifying"
    contract: str = "fp32"
    certificate_sha256: str = ""


def put_certifying(folder: Path, given: CertifyingFile) -> CertifyingEntry:
    """Copies the file, its probes and its script into the folder, and returns its entry in the manifest."""
    data, network = read_bytes(given.path, "model", MAX_ONNX_BYTES), read_bytes(given.network, "model", MAX_ONNX_BYTES)
    write_bytes(folder / given.path.name, data)
    script = certifying_script().encode()
    write_bytes(folder / CERTIFYING_SCRIPT, script)
    os.chmod(folder / CERTIFYING_SCRIPT, 0o755)
    graph = from_onnx(network)
    bounds = MarginBounds(graph, parse_model(data), given.clip, given.contract)
    return CertifyingEntry(
        role=given.role,
        precision="int8" if is_quantised(graph) else graph.storage,
        contract="" if given.contract == "fp32" else given.contract,
        certificate_sha256=given.certificate_sha256,
        unrounded=unrounded_ends(graph) if given.contract == "fp16-tensorrt" else (),
        file=given.path.name,
        sha256=sha256_bytes(data),
        content_sha256=content_sha256(data),
        network_sha256=content_sha256(network),
        script_sha256=sha256_bytes(script),
        input=INPUT,
        input_shape=graph.input_shape,
        epsilon=EPSILON,
        logits=OUTPUT,
        predicted=CLASS,
        margin=MARGIN,
        probes=tuple(_probes(folder, given, bounds)),
    )


def unrounded_ends(graph: Graph) -> tuple[str, ...]:
    """Returns the names, in the file, of its input and output where it keeps them in float32 and stores float16."""
    return tuple(
        name for name, there in ((INPUT, graph.input in graph.unrounded), (OUTPUT, bool(graph.unrounded - {graph.input}))) if there
    )


def _probes(folder: Path, given: CertifyingFile, bounds: MarginBounds) -> Sequence[CertifyingProbe]:
    made = []
    longest = Fraction(given.clip[1]) - Fraction(given.clip[0])
    for i, x in enumerate(given.inputs):
        name = f"probe-{given.role.replace('certifying', 'certify')}-{i}.bin"
        content = np.ascontiguousarray(x, dtype="<f4").tobytes()
        write_bytes(folder / name, content)
        low, high = bounds.logits(x[None])
        classes = np.arange(low.shape[1])
        for share in SHARES:
            radius = np.float32(float(min(share * given.epsilon, longest)))
            upper = bounds.host(np.repeat(x[None], len(classes), axis=0), Fraction(float(radius)), classes) + bounds.room
            made.append(
                CertifyingProbe(
                    file=name,
                    sha256=sha256_bytes(content),
                    lower=tuple(low[0].tolist()),
                    upper=tuple(high[0].tolist()),
                    epsilon=float(radius),
                    margin_upper=tuple(upper.tolist()),
                )
            )
    return made
