"""Whether a network can fit a microcontroller, as far as that is known before it is trained."""

from __future__ import annotations

import numpy as np

from vsparse.errors import InputError
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.ir import Affine, Graph
from vsparse.pipeline.wanted import wants_int8_c
from vsparse.recipe import Recipe
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_source import emit_c, require_c_form
from vsparse.stages.export.firmware.link import COMPILER as CROSS_COMPILER
from vsparse.stages.export.quantise import quantise
from vsparse.target import Target

__all__ = ["CROSS_COMPILER", "KIB", "limit_kib", "require_fit"]
KIB = 1024


def require_fit(recipe: Recipe, target: Target, untrained: Graph) -> None:
    """Refuses, before anything is trained, what no training could make fit; InputError names the number and the way out.

    Weights that the recipe keeps take four bytes each, whatever their layout, or one where it asks for int8. Activations are known where
    no channel is removed: then the arena is that of the untrained network. What is found later is a gate of the build.
    """
    memories = [name for name in ("flash_kib", "ram_kib") if getattr(recipe.gates, name)]
    if target.device.kind != "microcontroller":
        if memories:
            raise InputError(
                f"gates.{memories[0]} is about a microcontroller, and target {target.name} is none; choose one, such as --target "
                f"cortex-m4f, or turn the gate off: --set gates.{memories[0]}=0"
            )
        return
    graph = fold_batch_norm(untrained)
    try:
        require_c_form(graph)
    except InputError as refusal:
        raise InputError(
            f"target {target.name} runs C alone: {refusal}, on another target".replace("; deploy the ONNX file instead", "")
        ) from None
    train = recipe.train
    if train.is_sparse and train.budget != "weights":
        kept = 0.0
    elif train.is_sparse:
        weights = sum(int(graph.params[node.weight].size) for node in graph.nodes if isinstance(node, Affine))
        kept = train.parameter_budget or (1 - train.sparsity) * weights
    else:
        kept = sum(int(graph.params[node.weight].size) for node in graph.nodes if isinstance(node, Affine))
    # Dead units that the exact reductions remove are no reason to begin: this is what the recipe asks for.
    int8 = wants_int8_c(recipe, target)
    way_out = "" if int8 else _in_int8(recipe, target)
    _compare(recipe, target, "flash", (1 if int8 else 4) * kept / KIB, f"{kept:,.0f} weights take", way_out)
    if not train.is_sparse or train.sparse.granularity != "channel":
        arena = emit_int8_c(_with_grids(graph)).memory.arena_bytes if int8 else emit_c(graph).scalar.arena_bytes
        _compare(recipe, target, "ram", arena / KIB, "the activations take")


def _with_grids(graph: Graph) -> Graph:
    """Returns the network with some grids: where activations lie does not depend on which."""
    return quantise(graph, np.zeros((1, *graph.input_shape), np.float32))


def limit_kib(recipe: Recipe, target: Target, memory: str) -> tuple[float, str]:
    """Returns the most KiB of a memory that the network may take, and what says so."""
    wanted = float(getattr(recipe.gates, f"{memory}_kib"))
    there = target.device.kib("flash" if memory == "flash" else "ram")
    return (wanted, f"gates.{memory}_kib") if 0 < wanted < there else (there, f"target {target.name}")


def _in_int8(recipe: Recipe, target: Target) -> str:
    """Says how the weights take about a quarter, where the target offers it."""
    precisions = (*recipe.export.precisions, "int8")
    export = recipe.export.model_copy(update={"precisions": precisions})
    if not wants_int8_c(recipe.model_copy(update={"export": export}), target):
        return ""
    listed = ", ".join(f'"{name}"' for name in precisions)
    return f", or ask for int8, which takes about a quarter: --set 'export.precisions=[{listed}]'"


def _compare(recipe: Recipe, target: Target, memory: str, kib: float, what: str, way_out: str = "") -> None:
    most, who = limit_kib(recipe, target, memory)
    if kib > most:
        name = "RAM" if memory == "ram" else memory
        raise InputError(
            f"the network does not fit: {what} {kib:,.1f} KiB of {name}, and {who} has {most:,.1f} KiB; lower network.width, or raise "
            f"train.sparsity{way_out}"
        )
