"""The recipes and targets that come with the package: inside the wheel, or beside `toolchain/` in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["models", "targets"]
RecipeSettings = Literal["faithful", "scaled", "best"]

# What the settings of each shipped recipe are; those that are not named are of our own, "best".
PUBLISHED: dict[str, RecipeSettings] = {
    "best-cifar10": "faithful",
    "cifar10-small": "scaled",
    "hydra-crown-ibp-cifar10": "faithful",
    "hydra-crown-ibp-mnist": "scaled",
    "hydra-crown-ibp-svhn": "faithful",
    "hydra-mixtrain-cifar10": "faithful",
    "hydra-mixtrain-mnist": "scaled",
    "hydra-mixtrain-svhn": "faithful",
    "hydra-pgd-cifar10": "faithful",
    "hydra-pgd-mnist": "scaled",
    "hydra-pgd-svhn": "faithful",
    "hydra-smoothing-cifar10": "faithful",
    "hydra-smoothing-mnist": "scaled",
    "hydra-smoothing-svhn": "faithful",
    "lottery-fgsm-mnist": "faithful",
    "lottery-fgsm-mnist-small": "scaled",
    "lottery-pgd-mnist": "faithful",
    "lottery-pgd-mnist-small": "scaled",
    "sparsevlr-mnist": "scaled",
    "sparsevlr-mnist-small": "scaled",
    "vericompress-cifar10": "faithful",
    "vericompress-mnist": "faithful",
    "vericompress-mnist-small": "scaled",
    "verisparse-mnist": "scaled",
    "verisparse-mnist-small": "scaled",
}


def shipped_directory(kind: Kind) -> Path:
    """Returns the folder that holds the shipped TOML files of a kind."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent.parent / kind


def shipped_settings(name: str) -> RecipeSettings:
    """Returns what the settings of a shipped recipe are.

    - faithful: those of a published training, where its file says of each key which source it has, and which are ours for want of one;
    - scaled: a published method, whose settings are ours or scaled to less time;
    - best: our own, chosen by evidence where the file says so.
    """
    return PUBLISHED.get(name, "best")


def shipped_names(kind: Kind) -> list[str]:
    """Returns the sorted names of what is shipped."""
    return sorted(path.stem for path in shipped_directory(kind).glob("*.toml"))


def shipped_file(kind: Kind, name: str) -> Path | None:
    """Returns the file of a shipped name, or None; a name with a path in it is never a shipped one."""
    return shipped_directory(kind) / f"{name}.toml" if name in shipped_names(kind) else None
