"""The recipe's section on data: where the samples come from, how they are split and augmented (docs/reference-recipe.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from vsparse.schema import Section

# Names that mean one dataset, wherever it lies.
BUILT_IN = ("digits", "breast-cancer", "vibration", "diabetes", "mnist", "cifar10", "cifar100", "svhn", "tinyimagenet", "gtsrb")
# Built-in datasets whose labels do not survive a left-right flip; of data of their own, users decide.
MIRROR_CHANGES = {
    "digits": "a mirrored 2 is no 2",
    "mnist": "a mirrored 2 is no 2",
    "svhn": "a mirrored 2 is no 2",
    "gtsrb": 'a mirrored "turn left ahead" is "turn right ahead", and other signs are not symmetric either',
}

MOST_SIDE = 1024


class Data(Section):
    """Where the samples come from and how they are split."""

    name: str = Field(
        "digits",
        description="built-in dataset (digits, breast-cancer, vibration, diabetes, mnist, cifar10, cifar100, svhn, tinyimagenet, gtsrb) or "
        "a name of your own",
    )
    format: Literal[
        "auto",
        "digits",
        "breast-cancer",
        "vibration",
        "diabetes",
        "idx",
        "npz",
        "folder",
        "cifar",
        "cifar100",
        "svhn",
        "tinyimagenet",
        "csv",
        "parquet",
    ] = Field("auto", description="auto: by what lies there")
    kind: Literal["auto", "classes", "regression"] = Field(
        "auto",
        exclude_if=("auto").__eq__,
        description="what is predicted: one of several classes, or one number (regression), of a table's data.target or an archive's y; "
        "auto: a number for diabetes, else classes",
    )
    path: str = Field("", description="file or folder, relative to --data; empty: the usual names of the format")
    validation: float = Field(0.1, gt=0, lt=0.5, description="fraction of the training split held out for choosing checkpoints")
    test: float = Field(0.2, gt=0, lt=0.9, description="fraction held out for the test where the source has no test split")
    mean: tuple[float, ...] = Field((), description="per channel, on the [0, 1] scale; empty: no normalisation")
    std: tuple[float, ...] = Field((), description="per channel, on the [0, 1] scale")
    layout: Literal["auto", "NHW", "NHWC", "NCHW", "NCT", "NTC", "NF"] = Field(
        "auto",
        exclude_if=("auto").__eq__,
        description="axes of x in an .npz file: images, windows of T time steps in C channels, or F features (docs/how-to-own-data.md)",
    )
    range: tuple[float, float] | None = Field(
        None, exclude_if=lambda value: value is None, description="values of an .npz file that map to 0 and 1; others are clipped"
    )
    target: str = Field("", exclude_if=("").__eq__, description="of a table: the column with the class, or the number to predict")
    categorical: tuple[str, ...] = Field(
        (), exclude_if=().__eq__, description="of a table: columns of numbers that are categories; columns of text always are"
    )
    drop: tuple[str, ...] = Field((), exclude_if=().__eq__, description="of a table: columns that are not read")
    group: str = Field("", exclude_if=("").__eq__, description="of a table: a column whose equal values are never on two sides of a split")
    shift: int = Field(0, ge=0, le=8, description="augmentation: random shifts of up to this many pixels")
    flip: bool = Field(False, description="augmentation: random left-right flips")
    crop: int = Field(0, ge=0, le=8, description="augmentation: random crops of images padded by this many edge pixels")
    resize: tuple[int, ...] = Field(
        (),
        exclude_if=().__eq__,
        description="height and width that images of folders and zips are resized to (Pillow, bilinear, antialiased); empty: they have "
        "one size",
    )
    track_separator: str = Field(
        "",
        max_length=4,
        exclude_if=("").__eq__,
        description="images in folders and zips whose names are alike up to the last one of these belong to one track, such as _ for "
        "00012_0005.png; empty: each image for itself",
    )

    @field_validator("resize")
    @classmethod
    def _height_and_width(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and (len(value) != 2 or not all(1 <= side <= MOST_SIDE for side in value)):
            raise ValueError(f"resize is a height and a width, each from 1 to {MOST_SIDE}, such as [32, 32]")
        return value

    @property
    def is_regression(self) -> bool:
        """Whether the samples have a number to be predicted, and no classes."""
        return self.kind == "regression" or self._diabetes

    @property
    def _diabetes(self) -> bool:
        return self.format == "diabetes" or (self.format == "auto" and self.name == "diabetes" and not self.path)

    @model_validator(mode="after")
    def _normalisation(self) -> Data:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}; give one of each per channel")
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be positive")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range must be two numbers, the lower one first")
        named = [*self.drop, *self.categorical, *filter(None, (self.target, self.group))]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'the column "{twice}" is named twice among target, categorical, drop and group; name it once')
        return self

    @model_validator(mode="after")
    def _what_is_predicted(self) -> Data:
        if self.kind == "classes" and self._diabetes:
            raise ValueError('the data "diabetes" has a number to predict and no classes; leave kind out')
        formats = ("auto", "npz", "csv", "parquet", "diabetes")
        inside = self.format in BUILT_IN or (self.name in BUILT_IN and self.format == "auto" and not self.path)
        if self.kind == "regression" and not self._diabetes and (self.format not in formats or inside):
            raise ValueError('kind = "regression" is about tables and .npz archives of your own, and this data has classes; leave it out')
        return self

    @model_validator(mode="after")
    def _mirror_images(self) -> Data:
        if self.flip and self.name in MIRROR_CHANGES:
            reason = MIRROR_CHANGES[self.name]
            raise ValueError(f"flip = true would train {self.name} on wrong labels: {reason}; set flip to false, shift and crop are safe")
        return self
