"""The hash that names a deployed model, and metadata that does not change it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # protobuf ships no types

from vsparse.errors import InputError
from vsparse.file_kind import no_network
from vsparse.files import read_bytes, write_bytes

MAX_MODEL_BYTES = 2**30
PREFIX = "vsparse."


def parse_model(source: Path | bytes) -> onnx.ModelProto:
    """Returns the ONNX model of a file or of its bytes; nothing outside the file is read.

    Raises InputError for a file that is absent, larger than 1 GiB, not an ONNX model, or that keeps tensors in other files (their
    content would escape the hash).
    """
    name = f"model {source}" if isinstance(source, Path) else "the model"
    data = read_bytes(source, "model", MAX_MODEL_BYTES) if isinstance(source, Path) else source
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        other = no_network(source) if isinstance(source, Path) else ""
        raise InputError(f"{name} {other or f'is not an ONNX file ({error}); export it again'}") from error
    if not model.HasField("graph"):
        raise InputError(f"{name} is not an ONNX file: it holds no graph; export it again")
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f'{name} keeps the tensor "{tensor.name[:80]}" in another file; save it as one file, with its weights inside')
    return model


def content_sha256(source: Path | bytes | onnx.ModelProto) -> str:
    """Returns the SHA-256 of what a model computes: its deterministic protobuf serialisation with `metadata_props` cleared.

    A certificate names a model by this hash, so that the certificate's own hash can stand in the model's metadata.
    Raises InputError as `parse_model` does.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source if isinstance(source, onnx.ModelProto) else parse_model(source))
    model.ClearField("metadata_props")
    return hashlib.sha256(_serialise(model)).hexdigest()


def read_metadata(source: Path | bytes) -> dict[str, str]:
    """Returns the `vsparse.*` metadata of a model, with the prefix left out; raises InputError as `parse_model` does."""
    return {p.key.removeprefix(PREFIX): p.value for p in parse_model(source).metadata_props if p.key.startswith(PREFIX)}


def stamp(path: Path, metadata: Mapping[str, str]) -> str:
    """Sets `vsparse.*` metadata of a model file, atomically, and returns its content hash, which stays what it was.

    Keys get the prefix `vsparse.` where they lack it; other metadata is kept. Raises InputError as `parse_model` does.
    """
    model = parse_model(path)
    before = content_sha256(model)
    set_metadata(model, metadata)
    data = _serialise(model)
    if content_sha256(data) != before:
        raise InputError(f"model {path} cannot carry metadata: its serialisation is not stable; export it again")
    write_bytes(path, data)
    return before


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Sets `vsparse.*` metadata in place: one entry a key, sorted; other entries are kept."""
    kept = {p.key: p.value for p in model.metadata_props}
    kept.update({key if key.startswith(PREFIX) else PREFIX + key: str(value) for key, value in metadata.items()})
    model.ClearField("metadata_props")
    for key in sorted(kept):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, kept[key]


def _serialise(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InputError(f"the model is too large for one ONNX file ({error}); make the network smaller") from error
