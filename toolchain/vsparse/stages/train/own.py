"""Training settings of a module that the graph IR has no room for: frozen parameters, momenta of batch norm; others are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vsparse.errors import InputError
from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.recipe_train import Train

# Share of a batch's statistics in the running ones, torch's default.
MOMENTUM = 0.1


@dataclass(frozen=True)
class Own:
    """Settings beside recipe and graph that change the result of training.

    `frozen`: the graph's parameters that no step moves (requires_grad_(False)). `momenta`: by the name of a running statistic of batch
    norm, the weight that each batch's has in it, where that is not torch's default. `code`: a hash of the source of the user's own
    objective and sparsifier, empty where there are none.
    """

    frozen: frozenset[str] = frozenset()
    momenta: dict[str, float] = field(default_factory=dict)
    code: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values, for the key of a training; empty where the module says nothing."""
        found: dict[str, Any] = {"frozen": sorted(self.frozen), "momenta": self.momenta, "code": self.code}
        return {name: value for name, value in found.items() if value}


def read_own(module: nn.Module, graph: Graph, spec: Train) -> Own:
    """Returns what training has to honour of a module that `graph` was read from.

    Raises InputError that names the parameter or layer for what it cannot: a trainable parameter that the forward adds or multiplies
    directly, hooks on gradients, an average of batch statistics without end, and frozen layers in a network that is made sparse.
    """
    trained = [name for node in graph.nodes if isinstance(node, Affine | BatchNorm) for name in node.params]
    parameters = dict(module.named_parameters())
    for name in graph.params:
        if name in parameters and name not in trained and parameters[name].requires_grad:
            raise InputError(
                f'the network cannot be trained: the parameter "{name}" is added or multiplied by the forward itself, and only layers are '
                "trained; call requires_grad_(False) on it to keep its value, or use an nn.BatchNorm2d or a depthwise nn.Conv2d"
            )
    _refuse_gradient_hooks(module, parameters)
    frozen = frozenset(name for name in trained if name in parameters and not parameters[name].requires_grad)
    if frozen:
        _require_dense(spec, min(frozen), len(frozen) == sum(name in parameters for name in trained))
    return Own(frozen, _momenta(module, set(graph.params)))


def _require_dense(spec: Train, name: str, everything: bool) -> None:
    what = f'the parameter "{name}" is frozen (requires_grad is False)'
    if everything:
        raise InputError(f"the network cannot be trained: {what}, and so is every other; leave requires_grad on where it is to learn")
    if spec.is_sparse:
        raise InputError(
            f"{what}, and train.sparsity removes weights from every layer; set train.sparsity = 0 (and train.parameter_budget = 0) to keep "
            "it bit by bit, or leave requires_grad on"
        )
    if spec.engine == "auto_lirpa":
        raise InputError(f'{what}, and train.engine = "auto_lirpa" trains tensors of its own; set train.engine = "vsparse"')


def _refuse_gradient_hooks(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    way_out = "training computes gradients of its own graph and never calls it; remove the hook"
    for name, value in parameters.items():
        if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
            raise InputError(f'the network cannot be trained: the parameter "{name}" has a hook on its gradient; {way_out}')
    for name, part in module.named_modules():
        if part._backward_hooks or part._backward_pre_hooks:
            where = f'layer "{name}"' if name else "it"
            raise InputError(f"the network cannot be trained: {where} ({type(part).__name__}) has a backward hook; {way_out}")


def _momenta(module: nn.Module, names: set[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, part in module.named_modules():
        if not isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        statistics = [f"{path}.{own}" if path else own for own in ("running_mean", "running_var")]
        if not names.issuperset(statistics):
            continue
        if part.momentum is None:
            raise InputError(
                f'the network cannot be trained: layer "{path}" ({type(part).__name__}) has momentum=None, the mean over all batches; give '
                f"it a number, such as torch's default {MOMENTUM}"
            )
        if part.momentum != MOMENTUM:
            found |= dict.fromkeys(statistics, float(part.momentum))
    return found
