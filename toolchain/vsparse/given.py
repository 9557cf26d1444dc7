"""What `vsparse.train` is given in memory, a recipe, a network or tensors, as the files that a build reads."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.data import load
from vsparse.data.npz import channels_first
from vsparse.errors import InputError
from vsparse.files import write_bytes
from vsparse.graph import from_torch
from vsparse.recipe import Recipe, apply_settings, load_recipe
from vsparse.recipe_train import OF_START
from vsparse.schema import validate

SamplesWithLabels = Sequence[Any]
# One (x, y), a (x, y) for training and one for the test, or one of them by each part's name.
GivenData = SamplesWithLabels | tuple[SamplesWithLabels, SamplesWithLabels] | Mapping[str, SamplesWithLabels]
PARTS = {"train": "train", "validation": "val", "test": "test"}
NETWORK = "network.onnx"


def is_tensors(data: object) -> bool:
    """Whether data are given in memory, not by their path."""
    return data is not None and not isinstance(data, str | Path)


def written(
    directory: Path,
    recipe: Recipe,
    data: GivenData | None,
    module: nn.Module | None,
    settings: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Path:
    """Writes what is given into `directory` and returns the recipe's file; `settings` and `folder` are what it is built with, and
    where other data are.

    Images are [n, channels, height, width], uint8 or floats from 0 to 1, labels integers. A network is traced, and its weights are those
    that training begins with. Raises InputError for what cannot be trained, and for shapes that a file would not keep.
    """
    content = recipe.model_dump(mode="json", exclude_unset=True)
    content.setdefault("name", recipe.name)
    if recipe.train.start:
        content["train"]["start"] = str(Path(recipe.train.start).absolute())
    shape: tuple[int, ...] | None = None
    if data is not None:
        parts = _parts(data)
        place = directory / "data"
        shape = _write_parts(place, parts)
        content["data"] = {"name": "given", **content.get("data", {}), "format": "npz", "path": str(place.absolute())}
    if module is not None:
        known = validate(Recipe, apply_settings(content, list(settings or [])), "the recipe given")
        if shape is None:
            splits = load(known.data, folder, known.train.seed)
            shape = tuple(int(size) for size in splits.train.pixels.shape[1:])
        file = (directory / NETWORK).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_network(module, shape, file)
        content["network"] = {"architecture": OF_START}
        content["train"] = {**content.get("train", {}), "start": str(file)}
    found = validate(Recipe, content, "the recipe given")
    path = directory / f"{found.name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, tomli_w.dumps(content).encode())
    return path


def base(recipe: str | Path | Recipe | None, name: str) -> Recipe:
    """Returns the recipe that is given or named; without one, that of all defaults, for data of the name."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None:
        return load_recipe(str(recipe))
    return validate(Recipe, {"name": name, "data": {"name": name}}, "the recipe of defaults")


def _parts(data: GivenData) -> dict[str, tuple[NDArray[Any], NDArray[np.int64]]]:
    if isinstance(data, Mapping):
        unknown = next((name for name in data if name not in PARTS), None)
        if unknown is not None or "train" not in data:
            raise InputError(f"data has the parts {', '.join(map(str, data))}; give train, and validation and test where there are such")
        pairs = dict(data)
    elif len(data) == 2 and all(isinstance(one, tuple | list) and len(one) == 2 for one in data):
        pairs = {"train": data[0], "test": data[1]}
    else:
        pairs = {"train": data}
    return {name: _pair(pair, name) for name, pair in pairs.items()}


def _pair(pair: SamplesWithLabels, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"the {name} data is no pair of images and labels; give (x, y)")
    x, y = (_array(one) for one in pair)
    if x.ndim != 4 or x.dtype.kind not in "uf" or (x.dtype.kind == "u" and x.dtype != np.uint8):
        raise InputError(
            f"the {name} images are {x.dtype} of shape {list(x.shape)}; give [n, channels, height, width] of uint8, or floats from 0 to 1"
        )
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x):
        raise InputError(f"the {name} labels are {y.dtype} of shape {list(y.shape)} for {len(x)} images; give one integer an image")
    return x.astype(np.float32) if x.dtype.kind == "f" else x, y.astype(np.int64)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        found: NDArray[Any] = value.numpy()
        return found
    return np.asarray(value)


def _write_parts(folder: Path, parts: dict[str, tuple[NDArray[Any], NDArray[np.int64]]]) -> tuple[int, ...]:
    """Writes an archive for each part and returns the shape of an image; the axis of channels is put where the reader looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.npz"):
        if file.stem in PARTS.values():
            file.unlink()
    for name, (x, y) in parts.items():
        stream = io.BytesIO()
        np.savez(stream, x=_as_read(x, name), y=y)
        write_bytes(folder / f"{PARTS[name]}.npz", stream.getvalue())
    shape: tuple[int, ...] = parts["train"][0].shape[1:]
    return shape


def _as_read(x: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns the images with their axes in an order that the reader of archives turns into [n, channels, height, width] again."""
    for ordered in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1))):
        try:
            if np.array_equal(channels_first(ordered, name), x):
                return ordered
        except InputError:
            continue
    raise InputError(f"the {name} images have shape {list(x.shape)}, whose channel axis an archive cannot tell; pad their height or width")


def _write_network(module: nn.Module, shape: tuple[int, ...], file: Path) -> None:
    frozen = next((name for name, value in module.named_parameters() if not value.requires_grad), None)
    if frozen is not None:
        raise InputError(
            f'the parameter "{frozen}" is frozen (requires_grad is False), and a network given in memory is trained whole; name your own '
            "function as network.architecture instead (package.module:function), which keeps it"
        )
    training = module.training
    try:
        from_torch(module.eval(), shape)  # which names what cannot be trained
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Preserved, so that batch norm stays a layer that is trained.
            torch.onnx.export(
                module,
                (torch.zeros(1, *shape),),
                file,
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
    finally:
        module.train(training)
