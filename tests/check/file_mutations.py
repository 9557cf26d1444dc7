"""Damaged and forged files of every format in a whole artifact, signed again, and a judge that executes what is confirmed."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from forging import save, sign, sign_device, strip
from mutations import damage

from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest

MANIFEST = "manifest.json"
LEAST, MOST, LARGE = -(2**63), 2**63, 10**400
# What may stand in a JSON file in place of anything else.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, LEAST, MOST, LARGE, 0.0, -0.0, 0.5, 1e308, 5e-324, "", "0", "1/0", "-1", "0.05"),
    *("real", "fp16", "linf", "../../x", "\x1b[2J", "\u202e", "x" * 5000, [], {}, [[]], [None], {"": {}}, [0] * 100),
)
KINDS = ("value", "key", "swap", "text", "bytes", "graph", "files", "claim")


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths to all values in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, item in items for spot in spots(item, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """Returns the value at a path."""
    for key in path:
        value = value[key]
    return value


def one_spot(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """Returns a container and a key in it: one on the way to a value drawn at random, so that few outer ones are not passed over."""
    path = rng.choice([spot for spot in spots(content) if spot])
    path = path[: rng.randint(1, len(path))]
    return at(content, path[:-1]), path[-1]


def change_json(content: Any, kind: str, rng: random.Random) -> None:
    """Replaces a value, removes or adds a key, or lets two values of one document change places."""
    holder, key = one_spot(content, rng)
    if kind == "value":
        old = holder[key]
        near = [old + 1, old - 1, -old, old * 2, float(old), str(old)] if type(old) in (int, float) else [str(old)[::-1]]
        holder[key] = rng.choice([*VALUES, *near])
    elif kind == "key" and rng.random() < 0.7:
        holder.pop(key)
    elif kind == "key" and isinstance(holder, dict):
        holder[rng.choice(["void", "proof", "passed", "schema_version", "id", "pieces", "__class__"])] = rng.choice(VALUES)
    else:
        other, name = one_spot(content, rng)
        holder[key], other[name] = json.loads(json.dumps(other[name])), json.loads(json.dumps(holder[key]))


def change_text(text: str, rng: random.Random) -> str:
    """Breaks the text of a JSON or TOML file: NaN, keys that stand twice, deep nesting, long numbers, a part that is missing."""
    spot = rng.randrange(len(text) + 1)
    number = next((k for k in range(spot, len(text)) if text[k].isdigit()), len(text))
    brace = text.find("{", spot)
    brace = text.find("{") if brace < 0 else brace
    choices = [
        text[:spot],
        text[:number] + rng.choice(["NaN", "Infinity", "-Infinity", "9" * 5000, "1e999", "0x10", "01"]) + text[number + 1 :],
        text[:spot] + rng.choice(["[" * 60_000, '{"a":' * 30_000, "\x00", "\ufeff", "\ud83d\ude00", ",", "//"]) + text[spot:],
        text[: brace + 1] + '"files": {}, "claims": [], "id": 0, "id": 1,' + text[brace + 1 :],
        text[spot:] + text[:spot],
        text + text,
    ]
    return rng.choice(choices)


def change_graph(model: onnx.ModelProto, rng: random.Random) -> None:
    """Changes a network so that it is still one, or nearly: weights, attributes, names, operators, shapes, opset."""
    graph = model.graph
    kind = rng.choice(["bits", "bits", "attribute", "operator", "input", "shape", "opset", "dims", "type", "output", "repeat"])
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    if kind == "bits" and tensor.raw_data:
        data = bytearray(tensor.raw_data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        tensor.raw_data = bytes(data)
    elif kind == "attribute":
        if node.attribute and rng.random() < 0.6:
            one = rng.choice(node.attribute)
            one.i, one.f = rng.choice([0, 1, 2, -1, 2**62]), rng.choice([0.0, 1.0, float("nan")])
            one.ints[:] = [rng.choice([0, 1, 2, -1, 2**40]) for _ in one.ints]
        else:
            node.attribute.append(
                onnx.helper.make_attribute(rng.choice(["alpha", "axis", "perm", "transB", "to"]), rng.choice([0, 1.5, "", [1, 0]]))
            )
    elif kind == "operator":
        node.op_type = rng.choice(["Relu", "Identity", "Neg", "Tanh", "Sigmoid", "LeakyRelu", "Flatten", "Add", "Clip", "Loop", "Cast"])
    elif kind == "input":
        names = (
            [one.name for one in graph.initializer] + [name for other in graph.node for name in other.output] + ["", graph.input[0].name]
        )
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == "shape":
        rng.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = rng.choice([0, 1, -1, 2**31, 2**62])
    elif kind == "opset":
        model.opset_import[0].version = rng.choice([0, 12, 13, 26, 27, 2**60])
    elif kind == "dims":
        tensor.dims[:] = rng.choice([list(reversed(tensor.dims)), [2**40], [0], [-1], list(tensor.dims)[1:], [*tensor.dims, 1]])
    elif kind == "type":
        tensor.data_type = rng.choice([0, 1, 2, 3, 6, 7, 10, 16, 99])
    elif kind == "output":
        graph.output[0].name = rng.choice([name for other in graph.node for name in other.output] + [graph.input[0].name, "nothing"])
    else:
        graph.node.insert(rng.randrange(len(graph.node) + 1), node)


def sign_model(folder: Path, name: str) -> None:
    """Lets every certificate be about the model that is there now, with the hashes of all."""
    path = folder / name
    found = onnx.load(path)
    for certificate in sorted((folder / "certificate").rglob("certificate.json")):
        content = json.loads(certificate.read_text())
        if content["model"]["file"] == name:
            content["model"]["sha256"] = content_sha256(found)
            for claim in content["claims"]:
                claim["model"] = content["model"]
            content["certificate_sha256"] = digest(content)
            certificate.write_text(json.dumps(content))
            if certificate.parent.name != "sequential":
                onnx.helper.set_model_props(found, {"vsparse.certificate": content["certificate_sha256"]})
    path.write_bytes(found.SerializeToString(deterministic=True))
    if (folder / "device" / path.name).exists():
        shutil.copyfile(path, folder / "device" / path.name)


def change_claim(content: dict, other: dict, rng: random.Random) -> None:
    """Says more than is known in one certificate: other margins, methods, verdicts, contracts, radii, or another form's claims."""
    claim, kind = rng.choice(content["claims"]), rng.randrange(6)
    if kind == 0 and claim["margin_lower"] is not None:
        claim["margin_lower"] *= rng.choice([1 + 1e-9, 1.0001, 1.5, 0.5])
    elif kind == 1:
        claim["method"] = rng.choice(["interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound", "photometric-split"])
    elif kind == 2:
        claim.update(verdict="certified", predicted=claim["label"], margin_lower=rng.choice([1e-9, 5e-324, 0.1]), method="crown")
    elif kind == 3:
        content["contract"] = other["contract"]
        for one in content["claims"]:
            one["contract"] = other["contract"]["name"]
    elif kind == 4:
        content["property"]["epsilon"] = rng.choice(["0.02", "1/50", "0.0101", "1e-1", "0", "10/1000"])
        for one in content["claims"]:
            one["property"] = content["property"]
    else:
        content["claims"] = other["claims"]


def mutate_files(original: Path, folder: Path, seed: int) -> str:
    """Makes mutation number `seed` of an artifact in `folder`, and returns what was done."""
    rng, kind = random.Random(seed), KINDS[seed % len(KINDS)]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    certificates = [name for name in names if name.endswith("certificate.json")]
    silent = ("profile/", "train/", "compress/", "model/")  # nothing there follows from claims
    name = rng.choice([one for one in names if one.endswith(".json") and not one.startswith(silent) and "reading" not in one])
    if kind in ("graph", "claim", "bytes", "files") and rng.random() < 0.7:
        strip(folder, "device")
        names = [one for one in names if (folder / one).exists()]
    if kind in ("value", "key", "swap"):
        content = json.loads((folder / name).read_text())
        for _ in range(rng.choice([1, 1, 3])):
            change_json(content, kind, rng)
        (folder / name).write_text(json.dumps(content))
        if name in certificates and rng.random() < 0.8:
            with suppress(Exception):  # what no forger could sign either
                if rng.random() < 0.5:
                    save(folder, Path(name).parent.as_posix(), content)
                content["certificate_sha256"] = digest(content)
                (folder / name).write_text(json.dumps(content))
    elif kind == "text":
        name = rng.choice([one for one in names if one.endswith((".json", ".toml"))])
        text = change_text((folder / name).read_text(), rng)
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    elif kind == "bytes":
        name = rng.choice([one for one in names if one.endswith((".npz", ".onnx", ".bin"))])
        (folder / name).write_bytes(damage((folder / name).read_bytes(), rng))
    elif kind == "graph":
        name = rng.choice([one for one in names if one.startswith("model/") and one.endswith(".onnx")])
        model = onnx.load(folder / name)
        for _ in range(rng.choice([1, 1, 2])):
            change_graph(model, rng)
        (folder / name).write_bytes(model.SerializeToString())
        sign_model(folder, name)
    elif kind == "files":
        ending = rng.choice([".onnx", ".json", ".npz", ".json"])
        name, other = (rng.choice([one for one in names if one.endswith(ending) and one != MANIFEST]) for _ in range(2))
        first, second = ((folder / one).read_bytes() for one in (name, other))
        (folder / name).write_bytes(second)
        if rng.random() < 0.5:
            (folder / other).write_bytes(first)
        if rng.random() < 0.2:
            (folder / name).unlink()
        if rng.random() < 0.2:
            (folder / "certificate" / "extra.npz").symlink_to(folder / other)
    else:
        name, other = rng.choice(certificates), rng.choice(certificates)
        content, foreign = (json.loads((folder / one).read_text()) for one in (name, other))
        change_claim(content, foreign, rng)
        save(folder, Path(name).parent.as_posix(), content)
        sign_model(folder, content["model"]["file"])
    signed = rng.random() < 0.9 and name != MANIFEST
    if signed:
        with suppress(Exception):  # the folder may not hold what there would be to sign
            sign_device(folder)
        sign(folder)
    return f"{kind} {name}{'' if signed else ' (not signed)'}"


def broken_claims(folder: Path, seed: int) -> list[str]:
    """Returns the certified claims of a confirmed artifact that an execution of the very file contradicts, on corners of each region."""
    rng, broken = np.random.default_rng(seed), []
    for path in sorted((folder / "certificate").rglob("certificate.json")):
        content, where = json.loads(path.read_text()), path.parent
        inputs = where / "inputs.npz"
        if not inputs.exists() or content["contract"]["name"] == "real":
            continue
        stored = np.load(inputs)
        at_id = dict(zip(stored["ids"].tolist(), stored["inputs"], strict=True))
        session = onnxruntime.InferenceSession((folder / content["model"]["file"]).read_bytes(), providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        (low, high), epsilon = content["property"]["clip"], float(Fraction(content["property"]["epsilon"].replace(" ", ""))) * (1 - 1e-6)
        for claim in content["claims"]:
            if claim["verdict"] != "certified":
                continue
            x = at_id[claim["id"]].reshape(-1)
            moves = np.concatenate([np.zeros((1, x.size)), rng.choice([-epsilon, epsilon], (24, x.size))])
            points = np.clip(x + moves, low, high).astype(np.float32).reshape(-1, *[int(d) for d in source.shape[1:]])
            logits = session.run(None, {source.name: points})[0].astype(np.float64)
            margins = logits[:, [claim["label"]]] - np.delete(logits, claim["label"], axis=1)
            if not margins.min() > claim["margin_lower"]:
                broken.append(f"{path.parent.name}: {claim['id']}")
    return broken
