"""The answer to a property, as plain values that a process can hand to another: verdict, witness, and what must be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsparse.notebook import pairs

Answered = Literal["unsat", "sat", "unknown", "timeout"]
REAL = "contract real: this is about the network in real arithmetic, and about no device that computes with rounding"
EXACT = (
    "the inputs are real numbers of the box, and the violation at them is proved in real arithmetic; the outputs are those of "
    "ONNX Runtime at these inputs rounded to float32"
)


@dataclass(frozen=True)
class Witness:
    """An input with unsafe outputs: `inputs` as a device is given them and `outputs` as ONNX Runtime computes them, float32, both flat.

    `rounded` counts the inputs whose box holds no float32 number, so that a device is given an end of it, rounded. Under the contract
    `real` such a witness is the exact point `exact`, decimals of every input, and not what it is rounded to; None elsewhere.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    rounded: int = 0
    exact: tuple[str, ...] | None = None

    @property
    def note(self) -> str:
        """What must be known about the inputs; empty where all are float32 numbers of the box."""
        if self.exact is not None:
            return EXACT
        if not self.rounded:
            return ""
        return (
            f"{self.rounded} of {len(self.inputs)} inputs are confined to decimals that no float32 number equals; a device is given them "
            "rounded to float32, and so they are in this witness"
        )

    def text(self) -> str:
        """Returns it as VNN-COMP writes counterexamples, every number exactly."""
        inputs = self.exact or tuple(f"{Decimal(float(value)):f}" for value in self.inputs)
        named = [(f"X_{i}", value) for i, value in enumerate(inputs)]
        named += [(f"Y_{j}", f"{Decimal(float(value)):f}") for j, value in enumerate(self.outputs)]
        return "(" + "\n".join(f"({name} {value})" for name, value in named) + ")"

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        exact = None if self.exact is None else list(self.exact)
        return {"inputs": self.inputs.tolist(), "outputs": self.outputs.tolist(), "rounded_inputs": self.rounded, "exact_inputs": exact}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Witness:
        """Returns what `as_dict` was made from."""
        inputs, outputs = (np.array(values[key], dtype=np.float32) for key in ("inputs", "outputs"))
        exact = values["exact_inputs"]
        return Witness(inputs, outputs, values["rounded_inputs"], None if exact is None else tuple(exact))


@dataclass(frozen=True)
class Answer:
    """The verdict on a query, and with `sat` its witness; `domains` counts what branch and bound looked at, `seconds` wall-clock time.

    `reason` is a sentence that says why the verdict is `unknown`; empty where it is another one. `reading` is evidence, as JSON values,
    that the file computes what was read in it; None where nothing was compared.
    """

    verdict: Answered
    contract: str
    witness: Witness | None
    seconds: float
    domains: int
    reason: str = ""
    reading: dict[str, Any] | None = None

    @property
    def note(self) -> str:
        """What must be known about the contract, the witness, and why there is no verdict; empty where there is nothing to say."""
        about = self.witness.note if self.witness is not None else ""
        return "; ".join(part for part in (REAL if self.contract == "real" else "", about, self.reason) if part)

    def _repr_html_(self) -> str:
        return pairs(self.verdict, (("contract", self.contract), ("seconds", self.seconds), ("domains", self.domains)), self.note)

    def text(self) -> str:
        """Returns the verdict, the witness after it, and the note as a comment."""
        lines = [self.verdict, "" if self.witness is None else self.witness.text(), f"; {self.note}" if self.note else ""]
        return "\n".join(line for line in lines if line)

    def as_dict(self) -> dict[str, Any]:
        """Returns the answer as JSON values."""
        return {
            "schema_version": 1,
            "verdict": self.verdict,
            "contract": self.contract,
            "note": self.note,
            "reason": self.reason,
            "witness": None if self.witness is None else self.witness.as_dict(),
            "seconds": round(self.seconds, 3),
            "domains": self.domains,
            "reading": self.reading,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Answer:
        """Returns what `as_dict` was made from, but for digits of the time."""
        witness = None if values["witness"] is None else Witness.from_dict(values["witness"])
        names = ("verdict", "contract", "seconds", "domains", "reason", "reading")
        return Answer(witness=witness, **{name: values[name] for name in names})
