"""Images that are resized, and tracks by the names of files: what is read, what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsparse.data import load
from vsparse.errors import InputError
from vsparse.recipe import Data


def _write(folder: Path, names: dict[str, int], side: tuple[int, int] = (20, 12)) -> Path:
    for name, value in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (np.arange(side[0] * side[1] * 3).reshape(side[1], side[0], 3) * 7 + value) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def _tracks(classes: tuple[str, ...] = ("a", "b"), tracks: int = 6) -> dict[str, int]:
    names = [f"{kind}/t{kind}{t}_{f}.png" for kind in classes for t in range(tracks) for f in range(3)]
    return {name: number for number, name in enumerate(names)}


def test_resized_pixels_are_pillows_and_the_same_from_a_zip(tmp_path: Path) -> None:
    folder = _write(tmp_path / "own", _tracks())
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder).as_posix())
    spec = Data(name="own", resize=(8, 10), path="own")
    splits = load(spec, tmp_path, 0)
    assert splits.train.pixels.shape[1:] == (3, 8, 10)
    with Image.open(folder / "a" / "ta0_0.png") as image:
        wanted = np.asarray(image.resize((10, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    both = np.concatenate([splits.train.pixels, splits.validation.pixels, splits.test.pixels])
    assert any(np.array_equal(one, wanted) for one in both)
    assert load(spec.model_copy(update={"path": "own.zip"}), tmp_path, 0).sha256 == splits.sha256


def test_an_image_of_that_size_is_read_as_it_is(tmp_path: Path) -> None:
    folder = _write(tmp_path / "own", _tracks())
    plain, resized = (load(Data(name="own", resize=size), folder, 0) for size in ((), (12, 20)))
    assert plain.sha256 == resized.sha256


def test_sizes_that_differ_are_refused_with_the_way_out_and_modes_always(tmp_path: Path) -> None:
    folder = _write(tmp_path / "own", _tracks())
    _write(folder, {"a/zz_9.png": 3}, (9, 9))
    with pytest.raises(InputError, match=r"or set data\.resize to a height and a width"):
        load(Data(name="own"), folder, 0)
    load(Data(name="own", resize=(8, 8)), folder, 0)
    Image.new("L", (9, 9)).save(folder / "a" / "zz_9.png")
    with pytest.raises(InputError, match=r"make all images one size and one mode$"):
        load(Data(name="own", resize=(8, 8)), folder, 0)


def test_tracks_by_name_stay_on_one_side(tmp_path: Path) -> None:
    splits = load(Data(name="own", track_separator="_"), _write(tmp_path / "own", _tracks()), 0)
    sides = [set(one.groups.tolist()) for one in (splits.train, splits.validation, splits.test) if one.groups is not None]
    assert [len(one) for one in sides] == [8, 2, 2]
    assert len(set.union(*sides)) == 12


def test_a_number_alone_counts_within_its_class(tmp_path: Path) -> None:
    names = {f"{kind}/{t:03d}_{f}.png": t for kind in "ab" for t in range(6) for f in range(2)}
    splits = load(Data(name="own", track_separator="_"), _write(tmp_path / "own", names), 0)
    groups = [one.groups for one in (splits.train, splits.validation, splits.test)]
    assert len(np.unique(np.concatenate([one for one in groups if one is not None]))) == 12


def test_names_without_a_track_and_tracks_in_two_parts_are_refused(tmp_path: Path) -> None:
    spec = Data(name="own", track_separator="_")
    with pytest.raises(InputError, match='the name has no "_" behind a track'):
        load(spec, _write(tmp_path / "one", {**_tracks(), "a/alone.png": 1}), 0)
    divided = {f"{part}/{name}": value for part in ("train", "test") for name, value in _tracks().items()}
    with pytest.raises(InputError, match=r'track "ta0" is in both .*test and .*train'):
        load(spec, _write(tmp_path / "two", divided), 0)


def test_both_keys_are_about_images_in_folders(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.arange(9) % 2)
    for key, spec in (("resize", Data(name="own", resize=(2, 2))), ("track_separator", Data(name="own", track_separator="_"))):
        with pytest.raises(InputError, match=rf"data\.{key} is about images in folders and zips"):
            load(spec, tmp_path, 0)
    for wrong in ((3,), (0, 4), (4, 5000), (1, 2, 3)):
        with pytest.raises(ValueError, match="resize is a height and a width"):
            Data(name="own", resize=wrong)
