"""What a training depends on, as one hash: only a checkpoint with the same one is resumed."""

from __future__ import annotations

from typing import Any

import torch

from vsparse.data import Splits
from vsparse.files import canonical_json, sha256_bytes
from vsparse.recipe import Recipe
from vsparse.stages.train.named_classes import own_code
from vsparse.stages.train.validation import validated_by


def fingerprint_of(recipe: Recipe, splits: Splits, sparse: bool) -> str:
    """Returns a hash of all that a training of a recipe depends on: its sections, the data, the version of torch, the user's own code."""
    parts: dict[str, Any] = {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "network", "property", "train")}
    # The checkpoint itself says on which device it is from; of a start its hash counts, not its place.
    parts["train"] = {key: value for key, value in parts["train"].items() if key not in ("device", "start")}
    if recipe.deploy.live:  # epochs are chosen by what intervals certify
        parts["validated_by"] = validated_by(recipe)
    parts |= {"splits": splits.sha256, "sparse": sparse, "torch": torch.__version__}
    code = own_code(recipe.train)
    return sha256_bytes(canonical_json({**parts, "code": code} if code else parts))
