"""The packages that the wheel brings and every build uses, each tried by using it as a build does."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def version_of(name: str) -> str:
    """Returns the installed version of a distribution; empty where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _numpy() -> tuple[str, str]:
    import numpy as np

    _expect(float(np.arange(4.0) @ np.arange(4.0)), 14.0, "0·0 + 1·1 + 2·2 + 3·3")
    return str(np.__version__), "computed a dot product"


def _pydantic() -> tuple[str, str]:
    from pydantic import BaseModel, Field, ValidationError

    class Asked(BaseModel):
        epochs: int = Field(ge=1)

    _expect(Asked.model_validate_json('{"epochs": 3}').epochs, 3, "a document's number")
    try:
        Asked.model_validate({"epochs": 0})
    except ValidationError:
        return version_of("pydantic"), "read a document, and refused a wrong one"
    raise RuntimeError("a document that breaks its rules was accepted")


def _scikit_learn() -> tuple[str, str]:
    from sklearn.datasets import load_digits

    _expect(load_digits().data.shape, (1797, 64), "the shape of the digits")
    return version_of("scikit-learn"), "loaded the digits of the default build"


def _scipy() -> tuple[str, str]:
    from scipy.stats import beta, norm

    _expect(round(float(beta.ppf(0.5, 1, 1)) + float(norm.cdf(0)), 9), 1.0, "two medians")
    return version_of("scipy"), "computed two medians"


def _pillow() -> tuple[str, str]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (2, 2), 7).save(file, "PNG")
    _expect(Image.open(io.BytesIO(file.getvalue())).getpixel((1, 1)), 7, "a pixel of a PNG")
    return version_of("pillow"), "wrote a PNG and read it"


def _safetensors() -> tuple[str, str]:
    import torch
    from safetensors.torch import load, save

    _expect(load(save({"a": torch.arange(3.0)}))["a"].tolist(), [0.0, 1.0, 2.0], "a tensor that was saved")
    return version_of("safetensors"), "saved a tensor and loaded it"


def _jinja2() -> tuple[str, str]:
    from jinja2 import Environment

    _expect(Environment(autoescape=True).from_string("{{ a }}").render(a="<"), "&lt;", "an escaped sign")
    return version_of("jinja2"), "filled in a template"


def _tomli_w() -> tuple[str, str]:
    import tomli_w

    _expect(tomllib.loads(tomli_w.dumps({"a": [1, 2]})), {"a": [1, 2]}, "a table that was written")
    return version_of("tomli-w"), "wrote a table"


def _expect(got: Any, wanted: Any, what: str) -> None:
    if got != wanted:
        raise RuntimeError(f"{what} came out as {got!r}, not {wanted!r}")


# Name, what tries it (it returns version and what was done, and raises what goes wrong), and what to do where it does not work.
PACKAGES: tuple[tuple[str, Callable[[], tuple[str, str]], str], ...] = (
    ("numpy", _numpy, "pip install numpy"),
    ("pydantic", _pydantic, "pip install pydantic"),
    ("scikit-learn", _scikit_learn, "pip install scikit-learn"),
    ("scipy", _scipy, "pip install scipy"),
    ("pillow", _pillow, "pip install pillow"),
    ("safetensors", _safetensors, "pip install safetensors"),
    ("jinja2", _jinja2, "pip install jinja2"),
    ("tomli-w", _tomli_w, "pip install tomli-w"),
)
