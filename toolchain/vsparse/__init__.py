"""vsparse: certified sparse neural networks for small computers.

`build` takes a recipe and a target and makes an artifact; the other functions are single steps, one for each command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsparse.api import (
        build,
        check,
        compare_artifacts,
        compare_profiles,
        compress,
        describe_model,
        doctor,
        export,
        init,
        live,
        models,
        plan_build,
        predict,
        profile,
        report,
        targets,
        train,
        train_sweep,
        verify,
        verify_property,
    )

# The one place of the version: pyproject.toml reads it from here.
__version__ = "0.1.0"

__all__ = [
    "build",
    "check",
    "compare_artifacts",
    "compare_profiles",
    "compress",
    "describe_model",
    "doctor",
    "export",
    "init",
    "live",
    "models",
    "plan_build",
    "predict",
    "profile",
    "report",
    "targets",
    "train",
    "train_sweep",
    "verify",
    "verify_property",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing torch takes seconds, and most of the package does not need all of it.
    if name in __all__:
        from vsparse import api

        return getattr(api, name)
    raise AttributeError(f"module 'vsparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    # `help(vsparse)` and completion list what is loaded on first use too.
    return sorted({*globals(), *__all__})
