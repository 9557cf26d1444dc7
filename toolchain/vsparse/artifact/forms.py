"""The deployed forms of a network: a table with one record for each model file that can be certified, walked by every stage.

A form is added by a record here and an exporter in `stages/export/exporters.py`; `FORMS` is the order in which forms are shown. Where
runtimes read different files of one form, its contract says which: the exporter takes its style by that (`graph/grids.py`, STYLES).
The recipe reads this table, so it imports nothing of vsparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The network that is asked for, and its dense parent, which is trained for comparison alone.
Variant = Literal["sparse", "dense"]
VARIANTS: tuple[Variant, ...] = ("sparse", "dense")
# What asks for a form: nothing (it is always there), train.baseline, the target's c_source, export.precisions, both of these with int8.
AskedBy = Literal["always", "baseline", "c_source", "precisions", "c_int8"]
# Whose contract a form is certified under: verify.contract, its own (model.c), or that of the target's precision of its name.
ContractOf = Literal["recipe", "form", "target"]


@dataclass(frozen=True)
class DeployedForm:
    """One deployed form: a file in the artifact, and how it is asked for, certified, audited, timed, judged and named.

    `label` is its name in the table of forms, among which a build chooses, and in the recipe's `choose.forms`.
    `file` is what is deployed and `model` the ONNX file that the certificate names (another one for C source alone). `folder` holds
    certificate, inputs, counterexamples, proofs and audit. `latency` is the file of its timings, and `latency_key` the key in it;
    "" where it is not timed. `device_variant` is its name in the device folder, whose manifest calls it `role`; "" where it is not
    copied there. `gate` is the key in the recipe's section gates that asks for a certified accuracy; "" where none does.
    """

    name: str
    title: str
    label: str
    variant: Variant
    asked: AskedBy
    file: str
    model: str
    folder: str
    contract_of: ContractOf
    contract: str = ""  # with contract_of "form": its name
    follows: str = ""  # the form in whose verification it is certified, as its claims may follow from that one's
    audited: bool = True
    cross_checked: bool = False
    curve: bool = False
    latency: str = ""
    latency_key: str = ""
    device_variant: str = ""
    gate: str = ""

    @property
    def certificate(self) -> str:
        """The path of its certificate in the artifact."""
        return f"{self.folder}/certificate.json"

    @property
    def audit(self) -> str:
        """The path of its audit's record."""
        return f"{self.folder}/audit.json"

    @property
    def device_role(self) -> str:
        """Its role in a device folder and in the results of a device: of an ONNX file `device_variant`, of C source its own name."""
        return self.device_variant if self.is_onnx else self.name

    @property
    def is_main(self) -> bool:
        """Whether it is the deployed float32 network, which every artifact has, and not a further form."""
        return self.asked == "always"

    @property
    def is_further(self) -> bool:
        """Whether it is a further form of the sparse network: neither the main one nor the dense parent."""
        return self.variant == "sparse" and not self.is_main

    @property
    def is_onnx(self) -> bool:
        """Whether the file that is deployed is the ONNX file that its certificate names."""
        return self.file == self.model

    def record(self, kind: Literal["runtime_graph", "reading"]) -> str:
        """Returns the path of the export stage's record about its ONNX file: what the runtime makes of it, or how it was read back."""
        return f"model/{kind}.json" if self.is_main else f"model/{kind}.{self.name}.json"


def _precision(name: str) -> DeployedForm:
    """Returns a form of the sparse network in another precision, a model file of its own that `export.precisions` asks for."""
    return DeployedForm(
        name=name,
        title=name,
        label=name,
        variant="sparse",
        asked="precisions",
        file=f"model/model.{name}.onnx",
        model=f"model/model.{name}.onnx",
        folder=f"certificate/{name}",
        contract_of="target",
        latency=f"profile/precisions/{name}.json",
        latency_key="packed",
        device_variant=name,
        gate=f"{name}_certified_accuracy",
    )


SPARSE = DeployedForm(
    name="sparse",
    title="sparse",
    label="fp32",
    variant="sparse",
    asked="always",
    file="model/model.fp32.onnx",
    model="model/model.fp32.onnx",
    folder="certificate",
    contract_of="recipe",
    cross_checked=True,
    curve=True,
    latency="profile/onnxruntime-fp32.json",
    latency_key="packed",
    device_variant="packed",
    gate="certified_accuracy",
)
SEQUENTIAL = DeployedForm(
    name="sequential",
    title="the C source",
    label="C source",
    variant="sparse",
    asked="c_source",
    file="model/model.c",
    model="model/model.fp32.onnx",
    folder="certificate/sequential",
    contract_of="form",
    contract="sequential",
    follows="sparse",
    latency="profile/forms/sequential.json",
    latency_key="packed",
)
DENSE = DeployedForm(
    name="dense",
    title="the dense parent",
    label="dense parent",
    variant="dense",
    asked="baseline",
    file="model/dense.fp32.onnx",
    model="model/dense.fp32.onnx",
    folder="certificate/dense",
    contract_of="recipe",
    audited=False,  # it is not deployed
    curve=True,
    latency="profile/onnxruntime-fp32.json",
    latency_key="dense",
    device_variant="dense",
    gate="dense_certified_accuracy",
)
INT8 = _precision("int8")
INT8_C = DeployedForm(
    name="int8-c",
    title="the C source, int8",
    label="C int8",
    variant="sparse",
    asked="c_int8",
    file="model/model.int8.c",
    model=INT8.model,
    folder="certificate/int8/c",
    contract_of="form",
    contract="int8",
    follows=INT8.name,
    latency="profile/forms/int8-c.json",
    latency_key="packed",
)
FORMS: tuple[DeployedForm, ...] = (SPARSE, SEQUENTIAL, _precision("fp16"), _precision("bf16"), INT8, INT8_C, DENSE)
BY_NAME: dict[str, DeployedForm] = {form.name: form for form in FORMS}
# The forms that export.precisions may name.
PRECISIONS: tuple[DeployedForm, ...] = tuple(form for form in FORMS if form.asked == "precisions")
# The forms of the sparse network, among which a build chooses.
DEPLOYABLE: tuple[DeployedForm, ...] = tuple(form for form in FORMS if form.variant == "sparse")
# Those beside the main one.
FURTHER: tuple[DeployedForm, ...] = tuple(form for form in FORMS if form.is_further)
