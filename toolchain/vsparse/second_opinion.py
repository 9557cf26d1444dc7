"""auto_LiRPA, the second opinion: loaded through one small compatibility shim, quiet, and asked for bounds.

auto_LiRPA 0.3 (2022) is the newest release on the package index. It names parts of numpy and torch that newer versions have
dropped; they are supplied here, and nowhere else. A newer auto_LiRPA is imported as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from importlib import metadata
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from vsparse.errors import InputError, UnavailableError
from vsparse.graph.ir import Graph

INSTALL = "pip install --no-deps auto_LiRPA==0.3 appdirs tqdm"
NOT_INSTALLED = f"auto_LiRPA is not installed ({INSTALL})"
METHODS = ("IBP", "IBP+backward", "CROWN-IBP", "CROWN", "CROWN-Optimized")
# The cheapest one whose backward pass goes through every operator.
TRIAL = "IBP+backward"
# Of the sum of the magnitudes that make up a bound at a point, in float64 on both sides.
TRIAL_TOLERANCE = 1e-6
_SHIMMED = "0.3"
# Every pre-activation is bounded by the method itself: no interval bound is kept for neurons that intervals prove stable.
OPTIONS = {"relu": "adaptive", "sparse_intermediate_bounds": False}
FUSED_OPTIONS = {"relu": "adaptive", "loss_fusion": True}
# auto_LiRPA walks a network by recursion and sets a limit of a million when it is imported, under which a deeply nested JSON file crashes
# the interpreter; this is enough for a network, and for the length of a block only.
RECURSION_LIMIT = 10_000


class NoOpinionError(InputError):
    """auto_LiRPA has no bounds of a network: it lacks an operator, or does not work beside the libraries that are here."""


def absence() -> str:
    """Returns that auto_LiRPA is not installed, and how to install it; empty where it is. Imports nothing."""
    if sys.modules.get("auto_LiRPA") is not None:  # a module without a spec has none to be found
        return ""
    return NOT_INSTALLED if importlib.util.find_spec("auto_LiRPA") is None else ""


def version() -> str:
    """Returns the installed version of auto_LiRPA; raises UnavailableError, which says how to install it, where there is none."""
    if reason := absence():
        raise UnavailableError(reason)
    try:
        return metadata.version("auto_LiRPA")
    except metadata.PackageNotFoundError:
        return "unknown"  # a source checkout on the path has no metadata


def load() -> Any:
    """Returns the module auto_LiRPA, imported through the shim where its version needs it.

    Raises UnavailableError, with what to do, when it is absent or cannot be imported beside the torch and numpy that are here.
    """
    if (loaded := sys.modules.get("auto_LiRPA")) is not None:
        return loaded
    found = version()
    try:
        with _quiet():
            if found == _SHIMMED:
                _supply_torch_names()
                with _numpy_arraysetops():
                    module = importlib.import_module("auto_LiRPA")
                _accept_new_arguments(module.BoundedModule)
                return module
            return importlib.import_module("auto_LiRPA")
    except Exception as error:  # whatever a package of another era raises while it is imported
        for name in [name for name in sys.modules if name.partition(".")[0] == "auto_LiRPA"]:
            del sys.modules[name]
        raise UnavailableError(
            f"auto_LiRPA {found} cannot be imported beside torch {torch.__version__} ({type(error).__name__}: {error}); "
            f"install the version that is known to work: {INSTALL}"
        ) from error


def is_available() -> bool:
    """Returns whether auto_LiRPA can be loaded on this machine."""
    try:
        load()
    except UnavailableError:
        return False
    return True


@contextmanager
def quietly() -> Iterator[Any]:
    """Yields the module auto_LiRPA with its printing, logging and warnings held back for the length of the block."""
    module = load()
    with _quiet():
        yield module


def crown_lower(network: nn.Module | Graph, lower: Tensor, upper: Tensor, rows: Tensor, method: str = "CROWN") -> Tensor:
    """Returns auto_LiRPA's lower bounds of rows · output over boxes.

    `lower`, `upper` [batch, *input shape] and `rows` [batch, rows, outputs] share one floating dtype, in which everything is
    computed; the result is [batch, rows]. ReLU slopes are the adaptive ones (lower slope 1 where u > -l, otherwise 0; Zhang et al.,
    NeurIPS 2018, section 3.3). `method` is one of METHODS. The network is copied, and never changed.
    Raises NoOpinionError for a network that auto_LiRPA cannot bound, and says whether it bounds any; UnavailableError where there is none.
    """
    if method not in METHODS:
        raise InputError(f'auto_LiRPA is asked for "{method}" bounds; known: {", ".join(METHODS)}')
    module = _module(network, lower.dtype)
    failure: Exception | None = None
    with quietly() as lirpa, _default_dtype(lower.dtype):
        # Patches are ten times as fast on convolutions, but fail on some networks (a pool before a flatten), and with groups their bounds
        # are wrong without a word (auto_LiRPA 0.3); matrices do all.
        grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in module.modules())
        for mode in ("matrix",) if grouped else ("patches", "matrix"):
            try:
                return _bound(lirpa, module, lower, upper, rows, method, mode)
            except Exception as error:  # auto_LiRPA raises anything, assertions included, for what it does not know
                failure = error
    raise NoOpinionError(_blame(failure, f"bound this network by {method}", self_test)) from failure


def require_same_network(network: nn.Module | Graph, input_shape: tuple[int, ...]) -> None:
    """Raises NoOpinionError where auto_LiRPA computes another network: at a point each bound is the output, whatever the relaxations.

    0.3 overwrites where it must add when a Gather repeats an index, and takes padding with any number for padding with zeros; its bounds
    are then wrong without a word. Errors besides as for `crown_lower`.
    """
    generator = torch.Generator().manual_seed(0)
    point = torch.rand(1, *input_shape, generator=generator, dtype=torch.float64)
    module = _module(network, torch.float64)
    with torch.no_grad():
        outputs = module(point)
        row = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
        terms = row * outputs
    bound = crown_lower(module, point, point, row[:, None], TRIAL)
    if not float((bound - terms.sum()).abs().max()) <= TRIAL_TOLERANCE * float(terms.abs().sum()):
        raise NoOpinionError(f"auto_LiRPA {version()} computes another network than this one: at a point its bound is not the output")


def _blame(failure: Exception | None, what: str, test: Callable[[], object]) -> str:
    """Words a failure: of the network where auto_LiRPA passes its own test, of auto_LiRPA where it does not."""
    try:
        test()
    except UnavailableError as error:
        return str(error)
    return f"auto_LiRPA {version()} cannot {what} ({_named(failure)})"


def _named(failure: Exception | None) -> str:
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text}"[:200] if text else type(failure).__name__


def _bound(lirpa: Any, module: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor, method: str, mode: str) -> Tensor:
    bounded = lirpa.BoundedModule(module, torch.zeros_like(lower), bound_opts={**OPTIONS, "conv_mode": mode}, device="cpu")
    perturbation = lirpa.PerturbationLpNorm(norm=float("inf"), eps=None, x_L=lower, x_U=upper)
    # The centre is only the point that auto_LiRPA evaluates first; the box is the perturbation's.
    centre = lirpa.BoundedTensor((lower + upper) / 2, perturbation)
    with torch.enable_grad() if method == "CROWN-Optimized" else torch.no_grad():
        bounds = bounded.compute_bounds(x=(centre,), C=rows, method=method, bound_lower=True, bound_upper=False)
    result: Tensor = bounds[0].detach()
    return result


def self_test() -> float:
    """Returns the CROWN lower bound of a fixed two-layer network, -4/3 by hand, after checking it; for `vsparse doctor`.

    y = relu(x1 + x2) - relu(x1 - x2) over [-1, 1] × [0, 1]: both pre-activations lie in [-1, 2] and [-2, 1]. The first ReLU has lower
    slope 1, the second the upper line (z + 2)/3, so y ≥ x1 + x2 - (x1 - x2 + 2)/3, which is -4/3 at its least, in (-1, 0).
    Raises UnavailableError when auto_LiRPA is absent, fails, or answers something else.
    """
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        second.weight.copy_(torch.tensor([[1.0, -1.0]]))
    network = nn.Sequential(first, nn.ReLU(), second)
    box, rows = (torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 1.0]])), torch.ones(1, 1, 1)
    with quietly() as lirpa:
        try:
            bound = float(_bound(lirpa, network, *box, rows, "CROWN", "patches"))
        except Exception as error:  # as above
            raise UnavailableError(
                f"auto_LiRPA {version()} fails on a network of two layers ({_named(error)}); install the known version: {INSTALL}"
            ) from error
    return _checked(bound, SELF_TEST_BOUND)


def fused_self_test() -> float:
    """Returns the fused bound of log(1 + exp(−2x)) over [0, 1], log 2 by hand, after checking it: what crown-ibp training needs.

    The logits (x, −x) of label 0 make it; exp lies below its chord on [−2, 0], which at x = 0 is 1. Errors as for `self_test`.
    """
    network = nn.Linear(1, 2, bias=True)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network.bias.zero_()
    x, label = torch.tensor([[0.5]]), torch.tensor([0])
    try:
        bound = float(FusedLoss(network, (x, label)).upper(x, (x - 0.5, x + 0.5), label).detach())
    except UnavailableError:
        raise
    except Exception as error:  # as above
        raise UnavailableError(
            f"auto_LiRPA {version()} cannot fuse a loss into a network ({_named(error)}); install the known version: {INSTALL}"
        ) from error
    return _checked(bound, FUSED_BOUND)


SELF_TEST_BOUND, FUSED_BOUND = -4 / 3, log(2)


def _checked(bound: float, right: float) -> float:
    if not abs(bound - right) < 1e-5:
        raise UnavailableError(f"auto_LiRPA {version()} computes {bound} where {right:.6f} is right; install the known version: {INSTALL}")
    return bound


class _SumOfExponentials(nn.Module):
    """Maps (x, labels) to Σ_j exp(logit_j − logit_label), [batch, 1], whose logarithm is the cross-entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum of exponentials."""
        logits = self.network(x)
        return torch.exp(logits - torch.gather(logits, 1, labels.unsqueeze(1))).sum(1, keepdim=True)


class FusedLoss:
    """auto_LiRPA's bound of the cross-entropy of a network, with the loss fused into it (Xu et al., NeurIPS 2020, section 3.3).

    The network's own parameters are differentiated. Raises whatever auto_LiRPA raises for what it does not know.
    """

    def __init__(self, network: nn.Module, example: tuple[Tensor, Tensor]) -> None:
        with quietly() as lirpa:
            self.bounded: Any = lirpa.BoundedModule(_SumOfExponentials(network), example, bound_opts=FUSED_OPTIONS, device="cpu")
        self.exponential: Any = next(node for node in self.bounded.modules() if type(node).__name__ == "BoundExp")

    def upper(self, x: Tensor, box: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Returns an upper bound of the cross-entropy of each sample over the box, [batch].

        auto_LiRPA's exponential is of its argument less the largest upper bound, which is added again here.
        """
        with quietly() as lirpa:
            perturbation = lirpa.PerturbationLpNorm(norm=float("inf"), eps=None, x_L=box[0], x_U=box[1])
            point = lirpa.BoundedTensor(x, perturbation)
            self.bounded(point, labels)  # sets the batch size that the operators remember
            self.bounded.compute_bounds(x=(point, labels), IBP=True, C=None, method=None)
            _, upper = self.bounded.compute_bounds(IBP=False, C=None, method="backward", bound_lower=False, bound_upper=True)
        result: Tensor = torch.log(upper.flatten()) + self.exponential.max_input.flatten()
        return result


def fused_loss(network: nn.Module, example: tuple[Tensor, Tensor]) -> FusedLoss:
    """Returns the fused loss after one bound at the example (x, labels), where the network is computed rightly (`require_same_network`).

    NoOpinionError and UnavailableError as for `crown_lower`.
    """
    load()
    try:
        made = FusedLoss(network, example)
        with torch.no_grad():
            made.upper(example[0], (example[0], example[0]), example[1])
    except Exception as error:  # as above
        raise NoOpinionError(_blame(error, "fuse the loss into this network", fused_self_test)) from error
    require_same_network(network, tuple(example[0].shape[1:]))
    return made


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes `dtype` torch's default for the block: auto_LiRPA makes its identity matrices in the default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _module(network: nn.Module | Graph, dtype: torch.dtype) -> nn.Module:
    if isinstance(network, Graph):
        from vsparse.graph import to_torch

        module: nn.Module = to_torch(network)
    else:
        module = deepcopy(network)
    return module.to(dtype).eval()


def _supply_torch_names() -> None:
    """Supplies what auto_LiRPA 0.3 takes from torch and what newer versions no longer have; what is there stays."""
    importlib.import_module("torch.onnx.utils")  # must come first: torch.onnx no longer imports it by itself
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):
        helper._set_opset_version = _set_opset_version  # type: ignore[attr-defined]  # the name that torch dropped
    node: Any = torch._C.Node
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = _attribute
    try:
        exporter = importlib.import_module("torch.onnx._internal.torchscript_exporter.utils")
    except ImportError:
        return  # torch before 2.9 registers its symbolic functions when torch.onnx is imported
    # Without it `gather`, which loss fusion needs, becomes an unsupported OneHot.
    exporter._trigger_symbolic_function_registration()


def _set_opset_version(opset: int) -> None:
    """Sets the opset that torch's TorchScript exporter writes, which newer versions keep in a global object."""
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        try:
            importlib.import_module(name).GLOBALS.export_onnx_opset_version = opset
            return
        except ImportError:
            continue
    raise ImportError("torch.onnx has no exporter globals")


def _attribute(node: Any, name: str) -> Any:
    """Reads an attribute of a TorchScript node by its kind: kindOf gives the name of the getter (`i`, `fs`, `t`, …)."""
    return getattr(node, node.kindOf(name))(name)


def _accept_new_arguments(bounded_module: Any) -> None:
    """Lets BoundedModule._named_members take the argument `remove_duplicate` that newer versions of torch pass to it."""
    original = bounded_module._named_members

    def named_members(self: Any, get_members: Any, prefix: str = "", recurse: bool = True, **_: Any) -> Any:
        return original(self, get_members, prefix, recurse)

    bounded_module._named_members = named_members


@contextmanager
def _numpy_arraysetops() -> Iterator[None]:
    """Supplies the module numpy.lib.arraysetops with `isin` for the length of an import, where numpy has dropped it."""
    name = "numpy.lib.arraysetops"
    try:
        importlib.import_module(name)
    except ImportError:
        import numpy

        stand_in = types.ModuleType(name)
        stand_in.isin = numpy.isin  # type: ignore[attr-defined]  # a module made here
        sys.modules[name] = stand_in
        try:
            yield
        finally:
            sys.modules.pop(name, None)
    else:
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back stdout, warnings and logging, and undoes the global settings auto_LiRPA makes when it is imported."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    logger = logging.getLogger("auto_LiRPA")
    recursion = sys.getrecursionlimit()
    sys.setrecursionlimit(max(recursion, RECURSION_LIMIT))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings(record=True):
        # Recorded, not filtered: auto_LiRPA replaces the filters when it is imported.
        try:
            yield
        finally:
            sys.setrecursionlimit(recursion)
            for handler in root.handlers[:]:
                if handler not in handlers:  # logging.basicConfig(stream=sys.stdout) at import
                    root.removeHandler(handler)
            for name in list(logging.Logger.manager.loggerDict):
                if name.partition(".")[0] == logger.name:
                    logging.getLogger(name).setLevel(logging.ERROR)
