"""What lies beside the training images, and how images are turned and damaged: used, refused or said, never dropped in silence."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsparse.artifact.samples import record_of
from vsparse.data import Splits, load
from vsparse.data.parts import NAMES, part_of
from vsparse.errors import InputError
from vsparse.recipe import Data

SIDE = 16


def picture(level: int, side: int = SIDE) -> np.ndarray:
    """A grey ramp that starts at a level."""
    return (np.add.outer(np.arange(side), np.arange(side)) * 3 + level).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def part(folder: Path, first: int, count: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Images whose levels tell where they come from."""
    for index in range(count):
        save(folder / classes[index % len(classes)] / f"{index:03}.png", picture(first + index))


def levels(data: object) -> list[int]:
    return sorted(data.pixels[:, 0, 0, 0].tolist())  # type: ignore[attr-defined]


def own(root: Path) -> Splits:
    return load(Data(name="own"), root, 0)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "VALIDATION"])
def test_a_validation_folder_is_the_validation_split(tmp_path: Path, name: str) -> None:
    part(tmp_path / "train", 0, 20)
    part(tmp_path / name, 100)
    part(tmp_path / "test", 150)
    splits = own(tmp_path)
    assert levels(splits.train) == list(range(20))
    assert levels(splits.validation) == list(range(100, 112))
    assert levels(splits.test) == list(range(150, 162))
    assert splits.origins == {"train": "train", "validation": name, "test": "test"}
    assert splits.notes == ()


@pytest.mark.parametrize("name", ["Test", "TESTING", "testing"])
def test_a_test_folder_of_another_spelling_is_the_test_split(tmp_path: Path, name: str) -> None:
    part(tmp_path / "Training", 0, 20)
    part(tmp_path / name, 150)
    splits = own(tmp_path)
    assert levels(splits.test) == list(range(150, 162))
    assert len(splits.train) + len(splits.validation) == 20


def test_an_absent_test_split_says_where_it_is_drawn_from(tmp_path: Path) -> None:
    part(tmp_path / "train", 0, 40)
    splits = own(tmp_path)
    assert splits.origins["test"] == "drawn out of train, 20 % of each class of its 40 samples, by seed 0"
    assert splits.origins["validation"] == "drawn out of train, 10 % of each class of its 32 samples, by seed 0"
    found = record_of(splits).splits.test
    assert (found.samples, found.classes, found.origin) == (8, (4, 4), splits.origins["test"])


@pytest.mark.parametrize("extra", ["unlabelled", "holdout", "val_2"])
def test_a_folder_that_is_not_understood_is_said(tmp_path: Path, extra: str) -> None:
    part(tmp_path / "train", 0, 20)
    part(tmp_path / extra, 100)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    assert own(tmp_path).notes == tuple(
        sorted(
            [f'the folder "{extra}" beside train is not read, though it holds images', 'the folder "notes" beside train is not read'],
            key=lambda text: text.split('"')[1],
        )
    )


@pytest.mark.parametrize(("first", "second"), [("val", "valid"), ("test", "Test"), ("train", "training"), ("dev", "Validation")])
def test_two_folders_for_one_part_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name in {"train", first, second}:
        part(tmp_path / name, 0)
    with pytest.raises(InputError, match=f"holds both .* and .*, and each would be the {part_of(first)} split; remove or rename one"):
        own(tmp_path)


def test_a_class_of_the_validation_folder_that_training_lacks_is_refused(tmp_path: Path) -> None:
    part(tmp_path / "train", 0)
    part(tmp_path / "val", 100, classes=("cat", "emu"))
    with pytest.raises(InputError, match='is of the class "emu", which the training images do not have'):
        own(tmp_path)


def test_a_validation_folder_without_classes_is_refused(tmp_path: Path) -> None:
    part(tmp_path / "train", 0)
    save(tmp_path / "val" / "a.png", picture(3))
    with pytest.raises(InputError, match="is in no class"):
        own(tmp_path)


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    part(tmp_path, 0, 20, classes=("car", "train"))
    assert own(tmp_path).train.classes == ("car", "train")


def zipped(path: Path, parts: dict[str, int]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, first in parts.items():
            for index in range(12):
                stream = io.BytesIO()
                Image.fromarray(picture(first + index)).save(stream, format="PNG")
                archive.writestr(f"{name}{('cat', 'dog')[index % 2]}/{index}.png", stream.getvalue())


@pytest.mark.parametrize("around", ["", "own/"])
def test_parts_inside_a_zip(tmp_path: Path, around: str) -> None:
    zipped(tmp_path / "own.zip", {f"{around}train/": 0, f"{around}Valid/": 100, f"{around}test/": 150})
    splits = own(tmp_path)
    assert (levels(splits.train), levels(splits.validation), levels(splits.test)) == tuple(
        list(range(first, first + 12)) for first in (0, 100, 150)
    )
    zipped(tmp_path / "own.zip", {f"{around}train/": 0, f"{around}val/": 100, f"{around}valid/": 150})
    with pytest.raises(InputError, match="holds both val and valid"):
        own(tmp_path)


def test_zips_beside_each_other(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("val", 100), ("Test", 150)):
        zipped(tmp_path / f"{name}.zip", {"": first})
    part(tmp_path / "train", 50)
    splits = own(tmp_path)
    assert (levels(splits.validation), levels(splits.test)) == (list(range(100, 112)), list(range(150, 162)))
    assert splits.notes == ('the folder "train" beside Test.zip and train.zip and val.zip is not read, though it holds images',)


def test_archives_beside_each_other(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("val", 100), ("test", 150)):
        x = np.stack([picture(first + index) for index in range(12)])
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(12) % 2, track=np.arange(12) + first)
    splits = own(tmp_path)
    assert (levels(splits.validation), levels(splits.test)) == (list(range(100, 112)), list(range(150, 162)))
    np.savez(tmp_path / "val.npz", x=x, y=np.arange(12) % 2, track=np.arange(12))
    with pytest.raises(InputError, match="track 0 is in both"):
        own(tmp_path)


def test_every_name_of_a_part_is_known_in_any_casing() -> None:
    assert {part_of(spelling) for names in NAMES.values() for name in names for spelling in (name, name.upper(), name.title())} == set(
        NAMES
    )
    assert part_of("cat") is None


# Images ---------------------------------------------------------------------------------------------------------------

ORIENTED = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: lambda a: np.rot90(a, -1), 8: np.rot90}


@pytest.mark.parametrize("orientation", sorted(ORIENTED))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_are_turned_as_their_exif_orientation_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    part(tmp_path / "train", 0, 4)
    stored = picture(20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "train" / "cat" / f"000.{suffix}", stored, exif=exif)
    path = tmp_path / "train" / "cat" / f"000.{suffix}"
    (tmp_path / "train" / "cat" / "000.png").unlink() if suffix == "jpg" else None
    part(tmp_path / "test", 0, 4)
    splits = load(Data(name="own", validation=0.4), tmp_path, 0)
    with Image.open(path) as image:
        plain = np.asarray(image)
    turned = ORIENTED[orientation](plain)
    found = np.concatenate([splits.train.pixels, splits.validation.pixels])[:, 0]
    assert any(np.array_equal(one, turned) for one in found)
    assert splits.notes == (
        f"1 of 8 images are turned or mirrored as their EXIF orientation says, as any viewer shows them (the first: {path})",
    )


def test_sizes_are_compared_after_turning(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png", picture(0)[:8])
        save(tmp_path / name / "1.png", picture(0)[:, :8], exif=exif)
        save(tmp_path / name / "2.png", picture(5)[:8])
    assert own(tmp_path).train.pixels.shape[1:] == (1, 8, 16)
    save(tmp_path / "cat" / "3.png", picture(0)[:, :8])
    with pytest.raises(InputError, match=r"3\.png is 8 × 16 L, and .* is 16 × 8 L"):
        own(tmp_path)


def test_an_orientation_that_means_nothing_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 11
    part(tmp_path, 0, 6)
    save(tmp_path / "cat" / "000.png", picture(0), exif=exif)
    assert own(tmp_path).notes[0].startswith("1 of 6 images have the EXIF orientation 11, which means nothing")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [3, 10, 25])
def test_a_jpeg_whose_data_ends_early_is_refused_even_with_an_end_marker(tmp_path: Path, progressive: bool, missing: int) -> None:
    part(tmp_path, 0, 6)
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="JPEG", progressive=progressive)
    whole = stream.getvalue()
    path = tmp_path / "cat" / "000.jpg"
    path.write_bytes(whole + b"trailing bytes that no decoder reads")
    assert own(tmp_path).notes == ()
    path.write_bytes(whole[: -2 - missing] + b"\xff\xd9")
    with pytest.raises(InputError, match=r"000\.jpg is no readable .* image \(its data ends before the last pixels.*replace it"):
        own(tmp_path)
    path.write_bytes(whole[: -2 - missing])
    with pytest.raises(InputError, match=r"000\.jpg is no readable"):
        own(tmp_path)


def test_what_decoders_warn_of_is_counted(tmp_path: Path) -> None:
    part(tmp_path, 0, 6)
    exif = Image.Exif()
    exif[0x0112] = 1
    save(tmp_path / "dog" / "001.jpg", picture(0), exif=exif)
    data = bytearray((tmp_path / "dog" / "001.jpg").read_bytes())
    at = data.index(b"Exif\0\0") + 10
    data[at : at + 4] = b"\xff\xff\xff\x7f"  # where the first directory lies: beyond the end
    (tmp_path / "dog" / "001.jpg").write_bytes(bytes(data))
    notes = own(tmp_path).notes
    assert len(notes) == 1
    assert notes[0].startswith("1 of 7 images made the decoder warn: ")


def test_the_bundled_digits_say_that_a_folder_is_not_read(tmp_path: Path) -> None:
    assert "bundled" in load(Data(), tmp_path, 0).notes[0]
    assert load(Data(), None, 0).notes == ()
