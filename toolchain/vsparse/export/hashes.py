"""The hash that stands for a model's content: what is computed, without what is written about it."""

from __future__ import annotations

import hashlib

import onnx
from google.protobuf.message import DecodeError, EncodeError

from vsparse.errors import InputError


def content_sha256(model: bytes) -> str:
    """Returns the hexadecimal SHA-256 of a serialised ONNX model without its metadata_props.

    The metadata of an exported model names its certificate and the certificate names the model, so the metadata cannot be part of
    what is named. The rest is serialised again, deterministically. Raises InputError for bytes that are no ONNX model.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model)
        proto.ClearField("metadata_props")
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except (DecodeError, EncodeError, ValueError, RecursionError) as error:
        raise InputError(f"these {len(model)} bytes are not an ONNX model ({error}); export it again") from error
