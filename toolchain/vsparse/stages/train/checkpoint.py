"""Checkpoints: one safetensors file with all that training needs to continue exactly as if it had never stopped.

Random numbers need no state of their own: each epoch draws from generators seeded with (seed, epoch).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vsparse.compute_device import to_host
from vsparse.errors import InputError
from vsparse.files import canonical_json, write_bytes

NAME = "checkpoint.safetensors"
MAX_BYTES = 8 * 2**30
_VERSION = "3"
# The groups whose tensors are bool, stored as uint8.
MASKS = ("mask", "units")
PROCESSOR = "cpu"


@dataclass
class Checkpoint:
    """The state after `epoch` finished epochs; tensors by group and name.

    Groups: "param"; "mask" and "units", the masks' entries and groups; "extra" (what the sparsifier keeps); "moment.…" (what the
    optimiser keeps, after `steps` steps); "average"; and "best", the kept parameters, which `best` describes: epoch, certified, clean.
    `fixed`: the masks are final; `packed`: the tensors are those of the packed network. `device`: the label of where it was trained.
    """

    fingerprint: str
    epoch: int
    steps: int
    seconds: float
    history: list[dict[str, Any]]
    best: dict[str, float] = field(default_factory=dict)
    fixed: bool = False
    packed: bool = False
    average: dict[str, Any] = field(default_factory=dict)
    device: str = PROCESSOR
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def write_checkpoint(directory: Path, state: Checkpoint, durable: bool = True) -> Path:
    """Writes the checkpoint in place of the last one, atomically; returns its path.

    Whatever ends the process, the last checkpoint or this one is there whole; after a loss of power only if it is `durable`, which
    waits for the disk. InputError where the system refuses, most often a full disk; the last checkpoint stays.
    """
    flat = {
        f"{group}/{name}": to_host(value.to(torch.uint8) if value.dtype == torch.bool else value).contiguous()
        for group, members in state.tensors.items()
        for name, value in members.items()
    }
    scalars = {
        "epoch": state.epoch,
        "steps": state.steps,
        "seconds": state.seconds,
        "history": state.history,
        "best": state.best,
        "fixed": state.fixed,
        "packed": state.packed,
        "average": state.average,
    }
    metadata = {"version": _VERSION, "fingerprint": state.fingerprint, "state": canonical_json(scalars).decode()}
    if state.device != PROCESSOR:
        metadata["device"] = state.device
    path = directory / NAME
    try:
        write_bytes(path, save(flat, metadata), durable)
    except OSError as error:
        kept = "the last one is whole" if path.is_file() else "there was none before"
        raise InputError(
            f"the checkpoint {path} of epoch {state.epoch} cannot be written: {error.strerror or error} ({kept}); "
            "free space, then run the same command again to go on"
        ) from error
    return path


def read_checkpoint(directory: Path, fingerprint: str, device: str = PROCESSOR) -> Checkpoint | None:
    """Returns the checkpoint of a directory, or None where there is none or it is of another recipe, dataset or version.

    Raises InputError for one that was trained on another device than `device`, whose numbers are not those of this one, and for a file
    that is damaged. Nothing in it is executed: it holds tensors and JSON.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if metadata.get("version") != _VERSION or metadata.get("fingerprint") != fingerprint:
                return None
            before = metadata.get("device", PROCESSOR)
            if before != device:
                raise InputError(
                    f"the checkpoint {path} was trained on {before}, and this training is on {device}, which computes other numbers; go on "
                    "where it began (train.device), or remove it to train from the start"
                )
            scalars = json.loads(metadata["state"])
            tensors: dict[str, dict[str, Tensor]] = {}
            for key in stream.keys():  # noqa: SIM118 (not a dict: it has no iterator)
                group, _, name = key.partition("/")
                value = stream.get_tensor(key)
                tensors.setdefault(group, {})[name] = value.bool() if group in MASKS else value
        return Checkpoint(
            fingerprint=fingerprint,
            epoch=int(scalars["epoch"]),
            steps=int(scalars["steps"]),
            seconds=float(scalars["seconds"]),
            history=list(scalars["history"]),
            best={str(key): float(value) for key, value in scalars["best"].items()},
            fixed=bool(scalars["fixed"]),
            packed=bool(scalars["packed"]),
            average=dict(scalars["average"]),
            device=device,
            tensors=tensors,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"the checkpoint {path} is damaged ({error}); remove it to train from the start") from error
