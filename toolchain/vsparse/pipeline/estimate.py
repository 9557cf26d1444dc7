"""How long a stage may take and how much it may write, by arithmetic: an estimate, where no finished stage says better."""

from __future__ import annotations

from math import prod

from vsparse.graph.cost import macs, parameter_bytes
from vsparse.graph.ir import Graph
from vsparse.pipeline.steps import steps_of_an_epoch
from vsparse.recipe import Recipe

# Multiply-accumulates a second of one core in small networks: 3.6e9 were seen on one that others used too, and larger layers are faster.
MACS_PER_SECOND = 4e9
# Forward passes of a step before its gradient, by objective: interval bounds cost two, an attack's step three, CROWN about ten.
BOUND_PASSES, ATTACK_STEP_PASSES, CROWN_PASSES = 2, 3, 10
# A gradient costs two forward passes beside its own. Seconds of a step whatever its size, and of a stage.
WITH_GRADIENT, STEP_SECONDS, STAGE_SECONDS = 3, 0.004, 2.0
# Forward passes of a sample's certificate, with its curve, its attack and its searches; what all samples need together, in seconds.
CERTIFY_PASSES, CERTIFY_SECONDS = 4000, 60.0
# What a stage writes beside its networks, and how many copies of the parameters: checkpoints, files for runtimes, C.
STAGE_BYTES = 2**18
COPIES = {"train": 4, "compress": 2, "export": 6, "verify": 1, "profile": 0}


def stage_seconds(name: str, recipe: Recipe, network: Graph, samples: dict[str, int], forms: int = 1) -> float:
    """Returns about how many seconds a stage takes on one core; `samples` counts those of the splits train, validation and test."""
    once = macs(network) / MACS_PER_SECOND
    kind = name.partition("-")[0]
    if kind == "train":
        spec = recipe.train
        steps = spec.epochs * steps_of_an_epoch(samples["train"], spec.batch_size)
        seen = spec.epochs * (samples["train"] * WITH_GRADIENT * _passes(recipe) + samples["validation"] * (1 + BOUND_PASSES))
        return STAGE_SECONDS + steps * STEP_SECONDS + seen * once
    if kind == "verify":
        asked = min(recipe.property.samples or samples["test"], samples["test"])
        return CERTIFY_SECONDS + asked * CERTIFY_PASSES * once
    if kind == "profile":
        return STAGE_SECONDS + forms * (recipe.profile.seconds + recipe.profile.runs * once)
    return STAGE_SECONDS


def _passes(recipe: Recipe) -> float:
    """Returns the forward passes of one sample in a training step, as the objective's name says; 4 for one of the user's own."""
    loss, name = recipe.train.loss, recipe.train.objective
    attack = ATTACK_STEP_PASSES * loss.attack_steps * loss.attack_restarts / WITH_GRADIENT
    table = {
        "natural": 1.0,
        "fgsm": 1.0 + ATTACK_STEP_PASSES / WITH_GRADIENT,
        "pgd": 2.0 + attack,
        "trades": 2.0 + attack,
        "ibp": 1.0 + BOUND_PASSES,
        "crown-ibp": 1.0 + BOUND_PASSES + CROWN_PASSES,
        "mixtrain": 1.0 + BOUND_PASSES,
        "smoothing": 2.0,
    }
    return table.get(name, 2.0 + BOUND_PASSES + attack)


def stage_bytes(name: str, recipe: Recipe, network: Graph, samples: dict[str, int]) -> int:
    """Returns about how many bytes a finished stage takes on the disk."""
    kind = name.partition("-")[0]
    kept = 1 - recipe.train.sparsity if recipe.train.sparse.granularity == "channel" and kind in ("compress", "export") else 1.0
    proofs = samples["test"] * prod(network.input_shape) if kind == "verify" else 0
    return round(STAGE_BYTES + COPIES.get(kind, 1) * kept * parameter_bytes(network) + proofs)
