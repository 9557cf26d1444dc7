"""`train.start`: a trained network's weights, read without executing anything, put into the recipe's architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from vsparse.errors import InputError, nearest
from vsparse.file_kind import HEAD_BYTES, WHAT, file_kind
from vsparse.files import read_bytes, sha256_bytes
from vsparse.graph import Graph, from_torch, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import AddConstant, Affine, BatchNorm, Conv, MulConstant, Node
from vsparse.graph.operators.move import Move
from vsparse.graph.shapes import show
from vsparse.graph.torch_context import share_memory
from vsparse.networks import Normalise, make
from vsparse.recipe import Recipe
from vsparse.recipe_train import OF_START
from vsparse.stages.train.torch_file import SAVE, read_torch_file

MAX_BYTES = 2 * 2**30
# Keys under which training scripts keep the weights of a checkpoint.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What torch's own wrappers put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"
_EXACT = (torch.float32, torch.float16, torch.bfloat16)
# Greatest difference of two readings of one network in float64, relative to its greatest logit: weights that folding rounded to float32.
_TOLERANCE = 1e-4


def pinned(recipe: Recipe) -> Recipe:
    """Returns the recipe with the whole path of train.start and the SHA-256 of its file; the same recipe where it has none.

    Where the file is ONNX and the recipe names no architecture, it is that of the file.

    Raises InputError for a file that is absent or too large, or another one than train.start_sha256 says.
    """
    if not recipe.train.start:
        return recipe
    path, data = Path(recipe.train.start).absolute(), start_content(recipe)
    update = {"start": str(path), "start_sha256": sha256_bytes(data)}
    found = recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
    if "architecture" in recipe.network.model_fields_set or file_kind(data[:HEAD_BYTES]) != "onnx":
        return found
    return found.model_copy(update={"network": recipe.network.model_copy(update={"architecture": OF_START})})


def network_of(recipe: Recipe, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Makes the network that a recipe trains: its architecture with the weights of train.start, where it has one.

    The file is ONNX, safetensors, or of torch.save (a state_dict, alone or under one of the usual keys); what it is shows in its bytes.
    No module normalisation is read from a state_dict: data.mean and data.std say it. Raises InputError that names the file, the layer
    or parameter, and a way out: for a file of another architecture, missing and unknown names, other shapes, formats and numbers that
    are not finite, and for tied or frozen parameters.
    """
    module = make(recipe.network, shape, classes, recipe.data.mean, recipe.data.std, recipe.train.seed)
    if not recipe.train.start:
        return module
    frozen = next((name for name, value in module.named_parameters() if not value.requires_grad), None)
    where = f"train.start {recipe.train.start}"
    if frozen is not None:
        raise InputError(
            f'{where}: the parameter "{frozen}" of network.architecture {recipe.network.architecture} is frozen (requires_grad is False), '
            "and a start sets every parameter; leave requires_grad on, or load the file in the architecture's own function and set "
            'train.initialisation = "module"'
        )
    data = start_content(recipe)
    kind = file_kind(data[:HEAD_BYTES])
    with torch.no_grad():
        try:
            if kind == "onnx":
                _from_onnx(module, data, shape, recipe.network.architecture)
            elif kind == "safetensors":
                _from_tensors(module, _safetensors(data), recipe.network.architecture)
            elif kind == "zip":
                _from_tensors(module, _state_dict(read_torch_file(data)), recipe.network.architecture)
            else:
                raise InputError(_unreadable(kind))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return module


def _unreadable(kind: str) -> str:
    if kind == "torch":
        return f"it is in torch.save's format of before torch 1.6; {SAVE} with a newer one"
    what = next((text for name, text in WHAT.items() if name == kind), "none of these")
    return f"it is {what}; an ONNX file, a safetensors file or a state_dict of torch.save is wanted"


def start_content(recipe: Recipe) -> bytes:
    """Returns the bytes of the start's file, whose hash is compared with that of a pinned recipe."""
    path = Path(recipe.train.start)
    data = read_bytes(path, "train.start", MAX_BYTES)
    wanted = recipe.train.start_sha256
    if wanted and sha256_bytes(data) != wanted:
        raise InputError(
            f"train.start {path} is another file than train.start_sha256 says ({wanted[:12]}…): it was changed; restore it, or leave "
            "train.start_sha256 out to start from what it is now"
        )
    return data


# State dictionaries ---------------------------------------------------------------------------------------------------


def _safetensors(data: bytes) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"it is damaged, or has a number format that torch does not know ({error}); save it again in float32") from error
    return found


def _state_dict(found: Any) -> Mapping[str, Tensor]:
    if not isinstance(found, dict):
        raise InputError(f"it holds a {type(found).__name__}, no dictionary of tensors; {SAVE}")
    if found and all(isinstance(value, Tensor) for value in found.values()):
        return {str(name): value for name, value in found.items()}
    inner = [name for name in _WEIGHTS if isinstance(found.get(name), dict) and found[name]]
    if len(inner) == 1 and all(isinstance(value, Tensor) for value in found[inner[0]].values()):
        return {str(name): value for name, value in found[inner[0]].items()}
    names = ", ".join(str(name)[:40] for name in list(found)[:6])
    raise InputError(f"it holds {names or 'nothing'}, and no single dictionary of tensors ({', '.join(_WEIGHTS)}); {SAVE}")


def _body(module: nn.Module) -> tuple[nn.Module, str]:
    """Returns the network without the recipe's normalisation, and what stands before its names in the whole."""
    names = [name for name, _ in module.named_children()]
    whole = type(module) is nn.Sequential and names == ["normalise", "network"] and isinstance(module[0], Normalise)
    return (module[1], "network.") if whole and isinstance(module, nn.Sequential) else (module, "")


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(tensors)
    while found:
        prefix = next((one for one in _WRAPPERS if all(name.startswith(one) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _from_tensors(module: nn.Module, tensors: Mapping[str, Tensor], architecture: str) -> None:
    """Copies tensors into the parameters and buffers of a module, by name."""
    body, prefix = _body(module)
    wanted, given = dict(body.state_dict(keep_vars=True)), _unwrapped(tensors)
    if prefix and any(name.startswith("normalise.") for name in given):  # as a build writes train/weights.safetensors
        _require_normalisation(module, given)
        given = {name.removeprefix(prefix): value for name, value in given.items() if not name.startswith("normalise.")}
    missing = [name for name in wanted if name not in given and not name.endswith(_COUNTER)]
    unknown = [name for name in given if name not in wanted]
    what = f"network.architecture {architecture}"
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        held = f'; it holds "{show(unknown[0])}" instead' if unknown else ""
        raise InputError(f'it lacks "{missing[0]}"{more} of {what}{held}; name the architecture whose weights these are')
    if unknown:
        hint = nearest(unknown[0], list(wanted))
        raise InputError(f'it holds "{show(unknown[0])}", which {what} does not have{hint}; name the architecture whose weights these are')
    seen: dict[str, Tensor] = {}
    for name, target in wanted.items():
        value = given.get(name)
        if value is None or name.endswith(_COUNTER):
            continue
        _require_like(name, value, target, what)
        other = next((known for known, tensor in seen.items() if share_memory(tensor, value)), None)
        if other is not None:
            raise InputError(
                f'"{name}" and "{other}" are tied: they are one tensor in it, and training treats each layer alone; untie them before '
                "torch.save with .detach().clone()"
            )
        seen[name] = value
        target.copy_(value)


def _require_normalisation(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    for name, value in given.items():
        if name.startswith("normalise.") and not (name in own and own[name].shape == value.shape and torch.equal(own[name], value)):
            raise InputError(f'its input normalisation "{name}" is not that of data.mean and data.std; give the ones it was trained with')


def _require_like(name: str, value: Tensor, target: Tensor, what: str) -> None:
    if tuple(value.shape) != tuple(target.shape):
        raise InputError(
            f'"{name}" has the shape {list(value.shape)} in it and {list(target.shape)} in {what}; name the architecture (and '
            "network.width) whose weights these are"
        )
    if value.dtype not in _EXACT or target.dtype != torch.float32:
        raise InputError(f'"{name}" is {value.dtype}, and float32 is wanted; call .float() on the network before it is saved')
    if not bool(torch.isfinite(value).all()):
        raise InputError(f'"{name}" holds numbers that are not finite; start from a checkpoint of before the training diverged')
    if name.rpartition(".")[2] == "running_var" and bool((value < 0).any()):
        raise InputError(f'"{name}" holds variances below zero; save the network again')


# ONNX -----------------------------------------------------------------------------------------------------------------


def _from_onnx(module: nn.Module, data: bytes, shape: tuple[int, ...], architecture: str) -> None:
    """Copies the weights of an ONNX file's layers into those of a module, in order; then both compute the same."""
    found, wanted = from_onnx(data), from_torch(module, shape)
    what = f"network.architecture {architecture}"
    if found.storage != "fp32" or found.integers:
        raise InputError("its weights are float16 or quantised; give the float32 file that it was made from")
    if math.prod(found.input_shape) != math.prod(shape):
        raise InputError(f"it reads inputs of shape {list(found.input_shape)}, and the data have {list(shape)}; give its own data")
    has_norm, wants_norm = (any(isinstance(node, BatchNorm) for node in graph.nodes) for graph in (found, wanted))
    if wants_norm and not has_norm:
        raise InputError(
            f"its batch norm is folded into the layers before it, and {what} has batch norm, whose statistics cannot be had back; name "
            "one without (cnn4, cnn5-plain, cnn7-plain), or start from the state_dict"
        )
    original = found
    if not wants_norm:
        found = fold_batch_norm(found, constants=True)
    values = _matched(found, wanted, what)
    state = module.state_dict(keep_vars=True)
    for name, value in values.items():
        state[name].copy_(torch.from_numpy(value.reshape(state[name].shape).copy()))  # a row's kernel is that of a map of height 1
    _require_same(original, module, shape, wanted, what)


def _layers(graph: Graph) -> list[Affine | BatchNorm]:
    return [node for node in graph.nodes if isinstance(node, Affine | BatchNorm)]


def _described(graph: Graph, node: Affine | BatchNorm | None) -> str:
    if node is None:
        return "nothing"
    size = list(graph.params[node.params[0]].shape)
    more = ""
    if isinstance(node, Conv):
        more = f", stride {list(node.stride)}, padding {list(node.pads)}, dilation {list(node.dilation)}, groups {node.groups}"
    if isinstance(node, BatchNorm):
        more = f", epsilon {node.epsilon:g}"
    return f'"{show(node.name)}" ({type(node).__name__} {size}{more})'


def _matched(found: Graph, wanted: Graph, what: str) -> dict[str, NDArray[np.float32]]:
    """Returns the file's parameters under the architecture's names; InputError names the first layer that differs."""
    values: dict[str, NDArray[np.float32]] = {}
    seen: dict[str, NDArray[np.float32]] = {}
    for index, (one, other) in enumerate(zip_longest(_layers(found), _layers(wanted)), 1):
        here, there = _described(found, one), _described(wanted, other)
        if one is None or other is None or here.partition("(")[2] != there.partition("(")[2]:
            raise InputError(
                f"its layer {index} is {here}, and that of {what} is {there}; name the architecture (and network.width) that the file is of"
            )
        if isinstance(one, Affine) and isinstance(other, Affine):
            weight = found.params[one.weight]
            tied = next((name for name, known in seen.items() if np.shares_memory(known, weight)), None)
            if tied is not None:
                raise InputError(
                    f'its layers "{show(tied)}" and "{show(one.name)}" are tied: they read one weight, and training treats each layer '
                    "alone; untie them before the export with .detach().clone()"
                )
            seen[one.name] = weight
            values[other.weight] = weight
            bias = None if one.bias is None else found.params[one.bias]
            if other.bias is not None:
                values[other.bias] = np.zeros(len(weight), np.float32) if bias is None else bias
            elif bias is not None and bias.any():
                raise InputError(f"its layer {index}, {here}, has a bias, and that of {what}, {there}, has none; give it one there")
        else:
            values |= {mine: found.params[its] for its, mine in zip(one.params, other.params, strict=True)}
    return values


def _require_same(found: Graph, module: nn.Module, shape: tuple[int, ...], wanted: Graph, what: str) -> None:
    """Runs the file and the module on one random batch in float64: activations, pools and the order of branches are found out here.

    The file may begin with the recipe's normalisation or leave it out.
    """
    x = torch.rand(8, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = run(found, found.tensors(torch.float64), x.reshape(8, *found.input_shape))
    body, prefix = _body(module)
    candidates = [from_torch(module, shape)] + ([from_torch(body, shape)] if prefix else [])
    for graph in candidates:
        result = run(graph, graph.tensors(torch.float64), x)
        difference, most = float((result - expected).abs().max()), float(expected.abs().max())
        if difference <= _TOLERANCE * most + 1e-6:
            return
    its, mine = _functions(found), _functions(wanted)
    for index, (one, other) in enumerate(zip_longest(its, mine), 1):
        if one is None or other is None or type(one) is not type(other):
            here, there = ("nothing" if node is None else f'"{show(node.name)}" ({type(node).__name__})' for node in (one, other))
            raise InputError(
                f"its layers with weights fit, but of the others number {index} is {here}, and that of {what} is {there}; name the "
                "architecture that the file is of"
            )
    raise InputError(
        f"its layers fit {what}, but it computes something else: slopes, pools, the order of branches or the input normalisation differ; "
        "set data.mean and data.std to those inside the file, or name the architecture that it is of"
    )


def _functions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if not isinstance(node, Affine | BatchNorm | Move | MulConstant | AddConstant)]
