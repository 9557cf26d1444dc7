"""The perturbation set of a property: what may happen to a sample, in exact numbers, from recipe to certificate (docs/properties.md)."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import PlainSerializer, PlainValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from vsparse.errors import InputError
from vsparse.schema import Section, parse_fraction, validate

# Of the radii of single features: how many are stated, and how much larger than epsilon one may be.
MOST_SCALES, MOST_SCALE = 65_536, 1_000_000
Norm = Literal["linf", "l2", "l1"]
# Left out where they are zero, or none.
OPTIONAL = ("brightness", "contrast", "scales", "delta")
SYMBOLS = {"linf": "l∞", "l2": "l2", "l1": "l1"}
NORM_BALLS = {
    "linf": "any change of each pixel by up to {}",
    "l2": "any change of the pixels whose squares add up to no more than the square of {}",
    "l1": "any change of the pixels that adds up to no more than {}",
}


class WrittenFraction(Fraction):
    """An exact number that prints as it was written: 0.1 and 8/255 are themselves, and not their nearest doubles.

    It equals every number of its value. Arithmetic gives plain fractions. ValueError as of `vsparse.schema.parse_fraction`.
    """

    __slots__ = ("text",)
    text: str

    def __new__(cls, value: str | int | float | Fraction) -> Self:
        """Takes text, a number whose shortest decimal form is meant, or a fraction."""
        text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        number = super().__new__(cls, parse_fraction(text))
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def _written(value: Any) -> WrittenFraction:
    if isinstance(value, WrittenFraction):
        return value
    if not isinstance(value, str | int | float | Fraction) or isinstance(value, bool):
        raise ValueError("a number such as 0.1 or 8/255 is wanted")
    return WrittenFraction(value)


ExactValue = Annotated[WrittenFraction, PlainValidator(_written), PlainSerializer(str, return_type=str)]


class PerturbationSet(Section):
    """The inputs clip(x0 + b + c·(x0 − 1/2) + δ) around a sample x0, with |b| <= brightness, |c| <= contrast and ‖δ‖ <= epsilon in `norm`.

    With `scales`, one factor for each input value in C order, |δ_i| <= epsilon · scales[i] instead; they go with linf alone, without
    brightness and contrast. `clip` is the data range. Where brightness or contrast are not zero, each coordinate may then move by
    `rounding` within the data range: one rounding to float32. The numbers are exact, and keep the text that
    they were written with, which is what a certificate shows.
    `delta`, where it is not zero, makes the property one of regression: it is the most by which the answer may change, in the answer's
    own unit (docs/properties.md). It says nothing about the inputs.
    """

    norm: Norm = "linf"
    epsilon: ExactValue
    clip: tuple[float, float] = (0.0, 1.0)
    brightness: ExactValue = WrittenFraction("0")
    contrast: ExactValue = WrittenFraction("0")
    scales: tuple[ExactValue, ...] = ()
    delta: ExactValue = WrittenFraction("0")

    @classmethod
    def parse(cls, source: str, **keys: Any) -> PerturbationSet:
        """Returns the set that the keys state; InputError names the source, the key and what is wrong with its value."""
        return validate(cls, keys, source)

    @model_validator(mode="before")
    @classmethod
    def _one_zero(cls, content: Any) -> Any:
        """Reads every zero of brightness, contrast and delta as the default one, which is not written."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key not in OPTIONAL or not _is_zero(value)}

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.clip[0] > self.clip[1]:
            raise ValueError(f"the data range {self.clip} is empty; give (lowest, highest)")
        if self.scales and not self.is_box:
            raise ValueError("a radius for each feature is stated for norm linf alone, without brightness and contrast; leave these out")
        if self.scales and not any(self.scales):
            raise ValueError("scales are all 0, so that nothing may change; leave them out, and say epsilon = 0")
        if len(self.scales) > MOST_SCALES or any(not 0 <= scale <= MOST_SCALE for scale in self.scales):
            raise ValueError(f"scales must be at most {MOST_SCALES} numbers from 0 to {MOST_SCALE}")
        return self

    @model_serializer(mode="wrap")
    def _without_zeros(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what is zero, and scales where there are none: other certificates keep the bytes that they had before."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key not in OPTIONAL or getattr(self, key)}

    @property
    def regression(self) -> bool:
        """Whether the property is about by how much one real answer changes, and not about a class."""
        return bool(self.delta)

    @property
    def photometric(self) -> bool:
        """Whether brightness or contrast change."""
        return bool(self.brightness or self.contrast)

    @property
    def is_box(self) -> bool:
        """Whether the set is an l∞ ball and nothing else: after clipping, a box."""
        return self.norm == "linf" and not self.photometric

    @property
    def rounding(self) -> float:
        """How far rounding to float32 may move a member, 0 for plain balls. A power of two times a double: exact."""
        return 2.0**-24 * max(abs(self.clip[0]), abs(self.clip[1])) if self.photometric else 0.0

    @property
    def box_radius(self) -> Fraction:
        """The radius of an l∞ ball, on inputs in [0, 1], that the set lies in: |c·(x0 − 1/2)| <= contrast/2, and no norm is below l∞."""
        if self.scales:
            return self.epsilon * max(self.scales)
        return self.epsilon + self.brightness + self.contrast / 2

    def require_within_range(self, key: str = "epsilon") -> None:
        """Raises InputError, naming the key, for an l∞ radius above the width of the data range: the whole range is within a smaller one.

        Nothing but a constant answer could be certified then, and 8 is written where 8/255 is meant. Radii of features are another matter.
        """
        width = Fraction(self.clip[1]) - Fraction(self.clip[0])
        if self.norm == "linf" and not self.scales and self.epsilon > width:
            raise InputError(
                f"{key} = {self.epsilon} is more than {float(width):g}, the width of the data range, so that any input may become any "
                "other; inputs are scaled to [0, 1]: write 8/255 where 8 of 255 steps are meant"
            )

    def with_epsilon(self, epsilon: str | Fraction) -> PerturbationSet:
        """Returns the same set with another radius."""
        return self.model_copy(update={"epsilon": _written(epsilon)})

    def radii(self) -> tuple[Fraction, ...]:
        """Returns the radius of each input value, exactly; nothing where it is one for all."""
        return tuple(self.epsilon * scale for scale in self.scales)

    def label(self) -> str:
        """Returns the set in a few words, for a table or a title: `epsilon 0.05 (l∞), brightness ±0.1`."""
        changes = "".join(f", {name} ±{getattr(self, name)}" for name in ("brightness", "contrast") if getattr(self, name))
        each = ", in units of each feature" if self.scales else ""
        changes += f", answer ±{self.delta}" if self.delta else ""
        return f"epsilon {self.epsilon} ({SYMBOLS[self.norm]}){each}{changes}"

    def sentence(self) -> str:
        """Returns what may happen to an image, as the subject of a sentence."""
        parts = []
        if self.brightness:
            parts.append(f"a change of brightness by up to {self.brightness} for all pixels alike")
        if self.contrast:
            parts.append(f"a change of contrast by up to a fraction of {self.contrast}")
        if self.scales:
            fixed = sum(not scale for scale in self.scales)
            other = f" of the {len(self.scales) - fixed} that may change (the other {fixed} are fixed)" if fixed else ""
            return f"any change of each feature{other} by up to {self.epsilon} times its factor"
        if self.epsilon or not parts:
            parts.append(NORM_BALLS[self.norm].format(self.epsilon))
        return ", together with ".join(parts)


def _is_zero(value: Any) -> bool:
    try:
        return parse_fraction(str(value)) == 0
    except ValueError:
        return False
