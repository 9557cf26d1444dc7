"""The recipe's sections on what a build must reach and how it chooses a form (docs/reference-recipe.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model, model_validator

from vsparse.artifact.forms import DEPLOYABLE, PRECISIONS, DeployedForm
from vsparse.schema import Section

if TYPE_CHECKING:
    FormLabel = str
else:  # the labels of the table of forms, so that a wrong one is refused with those there are
    FormLabel = Literal[tuple(form.label for form in DEPLOYABLE)]


class FixedGates(Section):
    """What the build must reach, or it ends with exit code 1; 0 turns a gate off."""

    certified_accuracy: float = Field(0.0, ge=0, le=1, description="least fraction of test samples certified")
    dense_certified_accuracy: float = Field(0.0, ge=0, le=1, description="least fraction certified of the dense parent")
    live_certified_accuracy: float = Field(0.0, ge=0, le=1, description="least fraction that the device certifies by itself (deploy.live)")
    certified_loss: float = Field(0.0, ge=0, le=1, description="most that sparse may certify less than dense")
    weights_removed: float = Field(0.0, ge=0, lt=1, description="least fraction of weights physically absent")
    latency_ratio: float = Field(0.0, ge=0, description="most that packed median latency may be, as a fraction of dense")
    flash_kib: float = Field(0.0, ge=0, description="most flash that the C may take on a microcontroller, code and constants, in KiB")
    ram_kib: float = Field(0.0, ge=0, description="most RAM that the C may take on a microcontroller without its stack, in KiB")

    def certified_of(self, form: DeployedForm) -> float:
        """Returns the least fraction of samples that must be certified of a form; 0 where none is asked for."""
        return float(getattr(self, form.gate)) if form.gate else 0.0


if TYPE_CHECKING:
    Gates = FixedGates
else:  # and a key for each precision of the table of forms
    Gates = create_model(
        "Gates",
        __base__=FixedGates,
        __doc__=FixedGates.__doc__,
        **{
            form.gate: (float, Field(0.0, ge=0, le=1, description=f"least fraction certified of the {form.name} file"))
            for form in PRECISIONS
        },
    )


class Choose(Section):
    """What a deployed form must reach, beside the gates, to be the one that is chosen; 0 turns a limit off."""

    forms: tuple[FormLabel, ...] = Field((), description="the forms that may be chosen; empty: every one that is exported")
    certified_loss: float = Field(0.01, ge=0, le=1, description="most that a form may certify less than the fp32 file")
    bytes: int = Field(0, ge=0, description="most bytes of a form's file; of the C source, of its constants")
    latency_ms_p50: float = Field(0.0, ge=0, description="most median latency on the target, in ms")
    latency_ms_p99: float = Field(0.0, ge=0, description="most latency of 99 % of the runs on the target, in ms")
    energy_mj: float = Field(0.0, ge=0, exclude_if=lambda v: not v, description="most energy of one run there, idle included, in mJ")
    memory_mib: float = Field(0.0, ge=0, exclude_if=lambda v: not v, description="most memory of the process that runs it there, in MiB")

    @model_validator(mode="after")
    def _once(self) -> Choose:
        if len(set(self.forms)) < len(self.forms):
            raise ValueError("forms names one of them twice")
        return self
