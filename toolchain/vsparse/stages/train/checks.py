"""Checks of a recipe's training before any work: incompatible settings, and user-defined classes that fail."""

from __future__ import annotations

import torch

from vsparse import second_opinion
from vsparse.errors import InputError, UnavailableError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.schema import parse_fraction
from vsparse.stages.train.named_classes import errors_of_own_classes, own_classes
from vsparse.stages.train.objectives import TrainingBatch, make_objective, objective_class
from vsparse.stages.train.objectives.loss import require_loss
from vsparse.stages.train.phases import Phase
from vsparse.stages.train.sparsifiers import make_sparsifier, sparsifier_class


def objection(spec: Train) -> str | None:
    """Returns why recipe keys are incompatible with the objective or sparsifier, as one sentence with a way out; None where they are not.

    Raises InputError for a class of the user's own that cannot be imported.
    """
    chosen = objective_class(spec), sparsifier_class(spec)
    try:
        for one in chosen:
            with errors_of_own_classes(spec):
                one.require(spec)
    except InputError as error:
        return str(error)
    return None


def require_trainable(spec: Train, graph: Graph) -> None:
    """Raises InputError where `objection` has one, for a budget or a pattern that the network cannot meet, and for a class that fails.

    The last is a class of the user's own, tried on the untrained network. Raises UnavailableError where auto_LiRPA, on whose bounds it
    trains, is not installed.

    A user's objective computes one loss of two grey samples with its gradient, and a user's sparsifier is made and asked for its phases.
    """
    reason = objection(spec)
    if reason is not None:
        raise InputError(reason)
    if spec.engine == "auto_lirpa" and (absence := second_opinion.absence()):
        raise UnavailableError(
            f'train.engine = "auto_lirpa" trains on bounds of auto_LiRPA, and {absence}; or set train.engine = "vsparse"'
        )
    own = own_classes(spec)
    with errors_of_own_classes(spec):
        if "train.objective" in own:
            _try_objective(spec, graph)
        phases = make_sparsifier(spec, graph, True).phases()
        if "train.sparse.method" in own and not (
            isinstance(phases, tuple) and phases and all(isinstance(phase, Phase) for phase in phases)
        ):
            raise InputError(f"train.sparse.method {spec.sparse.method}: phases() must return a tuple of one Phase or more; change it")


def _try_objective(spec: Train, graph: Graph) -> None:
    params = {name: value.requires_grad_(value.is_floating_point()) for name, value in graph.tensors().items()}
    x = torch.full((2, *graph.input_shape), 0.5)
    epsilon = float(parse_fraction(spec.epsilon))
    batch = TrainingBatch(x, torch.zeros(2, dtype=torch.int64), epsilon, epsilon, 0.5, False, torch.Generator().manual_seed(0))
    loss = make_objective(spec, graph, params)(params, batch)
    require_loss(loss, spec.objective)
    if not loss.value.requires_grad:
        raise InputError(f"train.objective {spec.objective} returned a loss without gradients; compute it from the parameters given")
