"""Small artifacts that would cost minutes or gigabytes if they were believed: each is refused, soon and in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from forgeries import arrays_sha256, save, sign, store
from onnx import TensorProto, helper, numpy_helper

from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS

SECONDS, BYTES = 30, 2 * 2**30
MODEL = "model/model.fp32.onnx"


def network(
    shape: tuple[int, ...], nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], classes: int = 2, output: str = "logits"
) -> onnx.ModelProto:
    """Returns a file with the input `input` and the output `logits`."""
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [
        helper.make_tensor_value_info(*end)
        for end in (("input", TensorProto.FLOAT, ["n", *shape]), (output, TensorProto.FLOAT, ["n", classes]))
    ]
    graph = helper.make_graph(nodes, "bomb", ends[:1], ends[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def artifact(folder: Path, model: onnx.ModelProto, size: int, count: int = 1, method: str = "crown", epsilon: str = "1/4") -> dict:
    """Writes an artifact with `count` claims about inputs of `size` elements, and returns its certificate."""
    for part in ("model", "certificate"):
        (folder / part).mkdir(parents=True)
    (folder / MODEL).write_bytes(model.SerializeToString())
    inputs = np.zeros((count, size), dtype=np.float32)
    inputs[:, 0] = np.arange(count) / count
    store(folder / "certificate/inputs.npz", ids=np.arange(count), inputs=inputs)
    shared = {
        "model": {"file": MODEL, "sha256": content_sha256(model)},
        "property": {"norm": "linf", "epsilon": epsilon, "clip": [0.0, 1.0]},
    }
    claims = [
        {
            **{"id": number, "input_sha256": hashlib.sha256(x.tobytes()).hexdigest(), "label": 0, "predicted": 0, "verdict": "certified"},
            **{**shared, "contract": "fp32", "margin_lower": 0.5, "method": method, "time_ms": 1.0, "proof": "derivable"},
        }
        for number, x in enumerate(inputs)
    ]
    content = {"schema_version": 1, **shared, "contract": CONTRACTS["fp32"], "void": "", "claims": claims, "proofs_sha256": None}
    content |= {"data": {"name": "bomb", "split": "test", "classes": ["a", "b"]}, "counterexamples_sha256": arrays_sha256({})}
    save(folder, "certificate", content)
    sign(folder)
    return content


def last(source: str, size: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Returns a product that makes two logits of a map [C, 1, 1] or a vector."""
    nodes = [helper.make_node("Flatten", [source], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)]
    return nodes, {"w": np.full((2, size), 0.01, np.float32), "b": np.array([1, 0], np.float32)}


def padded_convolution(folder: Path) -> None:
    """A map of one pixel with padding of 64 all around, in a thousand channels."""
    nodes = [
        helper.make_node("Conv", ["input", "k"], ["c"], pads=[64] * 4, group=900),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    ]
    more, constants = last("p", 900)
    artifact(folder, network((900, 1, 1), [*nodes, *more], constants | {"k": np.ones((900, 1, 1, 1), np.float32)}), 900, 40)


def wide_padding(folder: Path, channels: int = 60, claims: int = 100) -> None:
    """As above, small enough to be read, and a hundred claims that each bound all of it."""
    nodes = [
        helper.make_node("Conv", ["input", "k", "o"], ["c"], pads=[60] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "l", "q"], ["d"], pads=[2] * 4),
        helper.make_node("Relu", ["d"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
    ]
    more, constants = last("p", channels)
    rng = np.random.default_rng(0)
    constants |= {"k": rng.normal(size=(channels, 1, 1, 1)).astype(np.float32), "o": rng.normal(size=channels).astype(np.float32)}
    constants |= {
        "l": rng.normal(size=(channels, channels, 5, 5)).astype(np.float32)[:, :, :1, :1].copy(),
        "q": np.zeros(channels, np.float32),
    }
    artifact(folder, network((1, 1, 1), [*nodes, *more], constants), 1, claims)


def large_windows(folder: Path) -> None:
    """Hundreds of pools over windows of 128 times 128."""
    nodes, source = [], "input"
    for k in range(400):
        nodes.append(helper.make_node("MaxPool", [source], [f"m{k}"], kernel_shape=[128, 128], pads=[63, 63, 64, 64]))
        source = f"m{k}"
    more, constants = last(source, 4)
    artifact(folder, network((1, 2, 2), [*nodes, *more], constants), 4, 40)


def long_sum(folder: Path) -> None:
    """Hundreds of convolutions whose sums a runtime may fuse into one: quadratically many terms."""
    nodes, constants, source = [], {"k": np.ones((64, 64, 1, 1), np.float32)}, "input"
    for k in range(330):
        nodes += [helper.make_node("Conv", ["input", "k"], [f"c{k}"]), helper.make_node("Add", [source, f"c{k}"], [f"a{k}"])]
        source = f"a{k}"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["p"]))
    more, weights = last("p", 64)
    artifact(folder, network((64, 8, 8), [*nodes, *more], constants | weights), 64 * 64, 10)


def doubling(folder: Path) -> None:
    """A vector that is put beside itself again and again."""
    nodes, source = [], "input"
    for k in range(17):
        nodes.append(helper.make_node("Concat", [source, source], [f"d{k}"], axis=1))
        source = f"d{k}"
    nodes += [helper.make_node("Relu", [source], ["r"]), helper.make_node("Slice", ["r", "s", "e", "x"], ["logits"])]
    constants = {"s": np.array([0]), "e": np.array([2]), "x": np.array([1])}
    artifact(folder, network((64,), nodes, constants), 64, 60)


def many_logits(folder: Path) -> None:
    """A vector padded to sixty thousand logits, each of which is a row of as many numbers."""
    nodes = [helper.make_node("Pad", ["input", "p"], ["logits"])]
    artifact(folder, network((2,), nodes, {"p": np.array([0, 0, 0, 60_000])}, 60_002), 2, 4)


def many_passes(folder: Path) -> None:
    """Claims by refined bounds on a wide network: each is a pass for each of thousands of units."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "k"], ["c"], pads=[3] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "l"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["s"]),
        helper.make_node("Conv", ["s", "l"], ["e"], pads=[1] * 4),
        helper.make_node("Relu", ["e"], ["t"]),
        helper.make_node("GlobalAveragePool", ["t"], ["p"]),
    ]
    more, constants = last("p", 16)
    constants |= {"k": rng.normal(size=(16, 1, 3, 3)).astype(np.float32), "l": rng.normal(size=(16, 16, 3, 3)).astype(np.float32)}
    artifact(folder, network((1, 40, 40), [*nodes, *more], constants), 1600, 100)


def rows_of_margins(folder: Path) -> None:
    """Claims about a thousand classes, derived together: each has a row for each class, of as many numbers."""
    constants = {"w": np.zeros((1000, 4), np.float32), "b": np.eye(1000, dtype=np.float32)[0] / 10}
    nodes = [helper.make_node("Gemm", ["input", "w", "b"], ["logits"], transB=1)]
    artifact(folder, network((4,), nodes, constants, 1000), 4, 200, "interval")


def wide_pieces(folder: Path) -> None:
    """Pieces of a region, bounded together on millions of activations."""
    nodes = [
        helper.make_node("Conv", ["input", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    ]
    more, constants = last("p", 500)
    model = network((1, 60, 60), [*nodes, *more], {"k": np.zeros((500, 1, 1, 1), np.float32), **constants})
    content = artifact(folder, model, 3600, 1, "photometric-split", "0")
    for part in (content, *content["claims"]):
        part["property"] = {**part["property"], "brightness": "1/100"}
    content["claims"][0]["pieces"] = [64, 1]
    save(folder, "certificate", content)
    sign(folder)


def zeros(path: Path, **sizes: int) -> None:
    """Writes an .npz of zeros that unpacks to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, size in sizes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)})
                member.write(header.getvalue())
                for _ in range(size // 2**20):
                    member.write(bytes(2**20))


def small(folder: Path, count: int = 3) -> dict:
    """An artifact of a tiny network, to which something is then done."""
    more, constants = last("input", 4)
    return artifact(folder, network((4,), more, constants), 4, count, "interval")


def unpacked_inputs(folder: Path) -> None:
    """Inputs that unpack to a quarter of a GiB."""
    small(folder)
    zeros(folder / "certificate/inputs.npz", ids=2**20, inputs=2**28)
    sign(folder)


def unpacked_proofs(folder: Path) -> None:
    """Proofs that unpack to a quarter of a GiB."""
    content = small(folder)
    zeros(folder / "certificate/proofs.npz", slopes=2**28)
    content["proofs_sha256"] = hashlib.sha256((folder / "certificate/proofs.npz").read_bytes()).hexdigest()
    save(folder, "certificate", content)
    sign(folder)


def deep_json(folder: Path) -> None:
    """A certificate of fifty thousand lists in each other."""
    small(folder)
    (folder / "certificate/certificate.json").write_text("[" * 50_000 + "]" * 50_000)
    sign(folder)


def long_number(folder: Path) -> None:
    """A manifest and an epsilon with numbers of hundreds of thousands of digits."""
    content = small(folder)
    for part in (content, *content["claims"]):
        part["property"] = {**part["property"], "epsilon": "0." + "1" * 300_000}
    save(folder, "certificate", content)
    sign(folder)


def large_exponent(folder: Path) -> None:
    """An epsilon whose exponent alone has nine digits."""
    content = small(folder)
    for part in (content, *content["claims"]):
        part["property"] = {**part["property"], "epsilon": "1e999999999"}
    save(folder, "certificate", content)
    sign(folder)


def large_file(folder: Path) -> None:
    """A file with a hole of a tebibyte, listed in the manifest."""
    small(folder)
    with (folder / "profile.json").open("wb") as stream:
        stream.truncate(2**40)
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["profile.json"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(content))


def promised_numbers(folder: Path) -> None:
    """A parameter whose shape promises 2^62 numbers."""
    small(folder)
    model = onnx.load(folder / MODEL)
    model.graph.initializer[0].dims[:] = [2**31, 2**31]
    replace(folder, model)


def many_nodes(folder: Path) -> None:
    """A hundred thousand operators."""
    small(folder)
    model = onnx.load(folder / MODEL)
    node, output = helper.make_node("Identity", ["input"], ["i"]), []
    for k in range(20_000):
        node.output[0] = f"i{k}"
        output.append(node.SerializeToString())
    model.graph.node.extend([onnx.NodeProto.FromString(data) for data in output])
    replace(folder, model)


def replace(folder: Path, model: onnx.ModelProto) -> None:
    """Puts another model into an artifact."""
    model.ClearField("metadata_props")
    (folder / MODEL).write_bytes(model.SerializeToString())
    content = json.loads((folder / "certificate/certificate.json").read_text())
    for part in (content, *content["claims"]):
        part["model"] = {"file": MODEL, "sha256": content_sha256(model)}
    content["certificate_sha256"] = digest(content)
    (folder / "certificate/certificate.json").write_text(json.dumps(content))
    sign(folder)


BOMBS: dict[str, Callable[[Path], None]] = {
    "padded convolution": padded_convolution,
    "wide padding": wide_padding,
    "large windows": large_windows,
    "long sum": long_sum,
    "doubling": doubling,
    "many logits": many_logits,
    "many passes": many_passes,
    "rows of margins": rows_of_margins,
    "wide pieces": wide_pieces,
    "unpacked inputs": unpacked_inputs,
    "unpacked proofs": unpacked_proofs,
    "deep JSON": deep_json,
    "long number": long_number,
    "large exponent": large_exponent,
    "large file": large_file,
    "promised numbers": promised_numbers,
    "many nodes": many_nodes,
}


class Cost(NamedTuple):
    """What a check of one artifact answered and took: seconds by the clock and of the processor, and the largest resident set in bytes."""

    verdict: str
    problem: str
    seconds: float
    processor_seconds: float
    bytes: int

    @property
    def cheap(self) -> bool:
        """Returns whether it stayed below both limits; seconds of the processor, as other work on a machine is none of a check's."""
        return self.processor_seconds < SECONDS and self.bytes < BYTES


def measure(folder: Path) -> Cost:
    """Checks an artifact in a process of its own and returns what it took."""
    program = (
        "import json, resource, sys; from vsparse_check import check; found = check(sys.argv[1]); "
        "took = resource.getrusage(resource.RUSAGE_SELF); "
        "print(json.dumps([found.verdict, found.problem, took.ru_maxrss, took.ru_utime + took.ru_stime]))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=600, check=True)
    verdict, problem, kibibytes, processor = json.loads(done.stdout)
    return Cost(verdict, problem, time.perf_counter() - started, processor, kibibytes * 1024)
