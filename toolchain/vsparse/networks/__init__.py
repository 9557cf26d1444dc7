"""Architectures as `nn.Module`: the named ones, and `package.module:function` of the user's own."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vsparse.errors import InputError, nearest
from vsparse.graph.user_code import described, imported
from vsparse.networks.architectures import ARCHITECTURES, Architecture
from vsparse.networks.layers import Normalise
from vsparse.recipe import Network

__all__ = ["ARCHITECTURES", "Architecture", "Normalise", "descriptions", "make"]


# Modules draw their initial weights from torch's one global generator: two threads at once would get each other's draws, and a
# sweep plans its configurations in threads.
_DRAWING = threading.Lock()


def descriptions() -> dict[str, str]:
    """Returns the one-line description of every named architecture."""
    return {name: architecture.description for name, architecture in ARCHITECTURES.items()}


def make(
    spec: Network, input_shape: tuple[int, ...], classes: int, mean: Sequence[float] = (), std: Sequence[float] = (), seed: int = 0
) -> nn.Module:
    """Makes the network of a recipe, with PyTorch's default initial weights drawn from `seed` (the global generator is left alone).

    `input_shape` is (C, H, W); `mean` and `std` hold one value per channel on the [0, 1] scale, or nothing for no normalisation.
    Raises InputError for an unknown name, for an input too small, and for a function of the user's own that cannot be
    imported, fails, or does not return a module that maps [n, C, H, W] to [n, classes].
    """
    if mean and len(mean) not in (1, input_shape[0]):
        raise InputError(
            f"data.mean and data.std have {len(mean)} values and the data {input_shape[0]} channels; give one value per channel"
        )
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = _own(spec, input_shape, classes) if ":" in spec.architecture else _named(spec, input_shape, classes)
    if not mean:
        return body
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std, len(input_shape)), network=body))


def _named(spec: Network, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    architecture = ARCHITECTURES.get(spec.architecture)
    if architecture is None:
        names = sorted(ARCHITECTURES)
        raise InputError(
            f'network.architecture: there is no "{spec.architecture}"{nearest(spec.architecture, names)}; there are {", ".join(names)}, '
            "or package.module:function of your own"
        )
    if min(input_shape[1:], default=1) < architecture.least_side:
        raise InputError(
            f"network.architecture {spec.architecture} needs inputs of at least {architecture.least_side} pixels a side, "
            f"and these are {'x'.join(map(str, input_shape[1:]))}; use mlp"
        )
    return architecture.build(input_shape, classes, spec.width)


def _function(name: str) -> Callable[..., Any]:
    """Imports `package.module:function`, the current directory included, as `python -m` would."""
    found = imported(name, "network.architecture")
    if not callable(found):
        raise InputError(f"network.architecture {name} is not a function; name one that takes (input_shape, classes, width)")
    function: Callable[..., Any] = found
    return function


def _own(spec: Network, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    function = _function(spec.architecture)
    what = f"network.architecture {spec.architecture}"
    try:
        inspect.signature(function).bind(input_shape, classes, spec.width)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError):  # ValueError: a callable that has no signature to look at
            raise InputError(f"{what} cannot be called ({error}); it must take (input_shape, classes, width)") from error
    try:
        module = function(input_shape, classes, spec.width)
    except (Exception, SystemExit) as error:  # the user's function may raise anything; they get it as one sentence
        raise InputError(
            f"{what} failed for the input shape {input_shape}, {classes} classes and width {spec.width:g}: {described(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{what} returned {type(module).__name__}, not a torch.nn.Module; return the network itself")
    _require_output(module, what, input_shape, classes)
    return module


def _require_output(module: nn.Module, what: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Runs the module once; lazy layers get their sizes here. What its forward raises is told as that, formats are left to `from_torch`."""
    module.eval()
    kinds = {value.dtype for value in module.parameters() if not nn.parameter.is_lazy(value) and value.is_floating_point()}
    if kinds - {torch.float32}:
        return
    given = f"[2, {', '.join(map(str, input_shape))}]"
    try:
        with torch.no_grad():
            found = module(torch.zeros(2, *input_shape))
    except (Exception, SystemExit) as error:  # so may its forward
        raise InputError(
            f"{what}: the forward of {type(module).__name__} fails on an input of shape {given}: {described(error)}"
        ) from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (2, classes):
        shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"{what}: {type(module).__name__} maps {given} to {shape}, not to [2, {classes}]; return logits for {classes} classes"
        )
