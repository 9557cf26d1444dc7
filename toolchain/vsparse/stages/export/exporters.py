"""How each deployed form is written: a function for each record of `vsparse.artifact.forms`, with the evidence that its file is sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vsparse.artifact.document import write_document
from vsparse.artifact.forms import SPARSE, DeployedForm
from vsparse.contract import LARGEST
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.graph.bfloat16 import to_bfloat16
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.shapes import show
from vsparse.perturbation import PerturbationSet
from vsparse.reading import check_written
from vsparse.stages.export.c_int8 import emit_int8_c
from vsparse.stages.export.c_int8.stage import write_int8_c
from vsparse.stages.export.c_live import UNIT_RANGE, emit_live_c, emit_live_int8_c, require_live_form, require_live_int8
from vsparse.stages.export.c_source import emit_c
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts
from vsparse.stages.export.c_source.stage import AS_IT_COMES, CRequest, write_c
from vsparse.stages.export.convolutions import as_convolutions
from vsparse.stages.export.fit import fitted, has_classes
from vsparse.stages.export.half import half
from vsparse.stages.export.mixed import MixedPrecision
from vsparse.stages.export.onnx_file import write_onnx
from vsparse.stages.export.quantise import layer_names, layers_in_float, quantise
from vsparse.stages.export.runtime_graph import check_runtime_graph
from vsparse.stages.export.tune import Tuning, better

# Training samples, evenly spaced over the split, whose activations set the ranges of a quantised model.
CALIBRATION = 512


@dataclass(frozen=True)
class ExecutedBy:
    """What will execute the files: the runtime of ONNX files, and of C the options that name a microcontroller, and its kernels' costs."""

    runtime: str = "onnxruntime"
    compiler: tuple[str, ...] = ()
    costs: KernelCosts = COSTS


ON_PROCESSORS = ExecutedBy()


@dataclass(frozen=True)
class ExportJob:
    """What every exporter works with: the stage's folder, the network of each variant, training samples, and what the files state.

    `graphs` holds the packed sparse network and, where it is exported, the dense parent, by variant. `training` calibrates quantised
    models, whose scales are those that certify most against `perturbation`, where there is one. `metadata` goes into each ONNX file, with
    the contract that its form is certified under. `tuning` is how the quantised network is trained on, None where it is not, and
    `float_layers` names those of its layers that stay in float32; `mixed` finds them. `c` is how C is written; with `live` it certifies
    its own inputs too, and with `second` by backward passes where intervals do not.
    """

    output: Path
    graphs: Mapping[str, Graph]
    training: Dataset
    opset: int
    recipe: str
    contracts: Mapping[DeployedForm, str]
    perturbation: PerturbationSet | None = None
    tuning: Tuning | None = None
    float_layers: tuple[str, ...] = ()
    c: CRequest = AS_IT_COMES
    execution: ExecutedBy = ON_PROCESSORS
    mixed: MixedPrecision | None = None
    live: bool = False
    second: bool = False

    def path(self, file: str) -> Path:
        """Returns where a file of the artifact's folder `model/` is written."""
        return self.output / Path(file).name

    def written(self) -> Graph:
        """Returns the network of the float32 file as that file says it; the other forms of the sparse network are made from it."""
        return from_onnx(self.path(SPARSE.model))

    def write(self, form: DeployedForm, graph: Graph, *, bfloat16: bool = False, **compared_with: Any) -> None:
        """Writes the ONNX file of a form, and the records of what the runtime makes of it and of how it was read back and executed.

        With `bfloat16` weights, which must be such numbers, are stored as these. `compared_with` are options of `check_written`. Raises
        GateError where the runtime changes a weight or executes another network.
        """
        path, metadata = self.path(form.model), {"recipe": self.recipe, "contract": self.contracts[form]}
        if form.variant == "dense":
            metadata["variant"] = "dense parent"
        write_onnx(graph, path, self.opset, metadata, bfloat16=bfloat16)
        write_document(self.path(form.record("reading")), check_written(path, graph, **compared_with))
        write_document(self.path(form.record("runtime_graph")), check_runtime_graph(path))


Exporter = Callable[[ExportJob, DeployedForm], None]


def export_float32(job: ExportJob, form: DeployedForm) -> None:
    """Writes the network of the form's variant as it is, in float32; for TensorRT with convolutions for its products."""
    graph = job.graphs[form.variant]
    job.write(form, as_convolutions(graph) if job.execution.runtime == "tensorrt" else graph, source=graph, exact=True)


def export_c(job: ExportJob, form: DeployedForm) -> None:
    """Writes model.c and model.h from the float32 file, or in c_source.json why there are none.

    Raises InputError for a network that has a C form but no live certificate where one is asked for, by the name of the node.
    """
    if job.live:
        require_live_form(from_onnx(job.path(form.model)), UNIT_RANGE)
    write_c(job.path(form.model), job.recipe, job.c, partial(emit_live_c, second=job.second) if job.live else emit_c)


def export_int8_c(job: ExportJob, form: DeployedForm) -> None:
    """Writes model.int8.c and its headers from the quantised file, or in c_source.int8.json why there are none; `live` as in `export_c`."""
    if job.live:
        require_live_int8(from_onnx(job.path(form.model)), UNIT_RANGE)
    write_int8_c(job.path(form.model), job.recipe, job.c, partial(emit_live_int8_c, second=job.second) if job.live else emit_int8_c)


def export_half(job: ExportJob, form: DeployedForm) -> None:
    """Writes the network with float16 activations and weights, its sums typed as its contract says (docs/numerics.md, section 8.3).

    Raises InputError for a weight that float16 cannot hold.
    """
    job.write(form, half(job.written(), wide_sums=job.contracts[form] == "fp16-tensorrt"))


def export_bf16(job: ExportJob, form: DeployedForm) -> None:
    """Writes the network with weights rounded to bfloat16 and stored so; it computes in float32 (docs/numerics.md, section 8.1).

    Raises InputError that names a weight which is rounded beyond the largest bfloat16 number; those up to half the smallest become zero.
    """
    graph = job.written()
    rounded = {name: to_bfloat16(value).widened() for name, value in graph.params.items()}
    for name, value in rounded.items():
        if not np.isfinite(value).all():
            raise InputError(
                f'the parameter "{show(name)}" is beyond {LARGEST["bf16"]:.4g}, the largest bfloat16 number; leave bf16 out, or rescale'
            )
    job.write(form, graph.with_params(rounded), bfloat16=True)


def export_int8(job: ExportJob, form: DeployedForm) -> None:
    """Writes the network quantised to 8 bits in the style of its contract's runtime, calibrated, and trained on, with training samples.

    Raises InputError for a network that integers cannot execute.
    """
    graph, contract = job.written(), job.contracts[form]
    index = np.unique(np.linspace(0, len(job.training) - 1, min(CALIBRATION, len(job.training))).round().astype(np.int64))
    samples = job.training.inputs(index).reshape(len(index), *graph.input_shape)
    names = layer_names(graph, job.graphs["sparse"])
    floats = layers_in_float(graph, job.float_layers, names)

    def with_floats(one: Graph, shares: Mapping[str, float], floats: frozenset[str]) -> Graph:
        return quantise(one, samples, contract, shares=shares, floats=floats)

    def quantised(one: Graph, shares: Mapping[str, float]) -> Graph:
        return with_floats(one, shares, floats)

    if job.perturbation is None:
        job.write(form, quantised(graph, {}))
        return
    found = fitted(graph, samples, job.perturbation, quantised)
    if job.mixed is not None and has_classes(graph):
        named, floats = floats, job.mixed.float_layers(graph, found, job.perturbation, with_floats, floats, names)
        found = found if floats == named else fitted(graph, samples, job.perturbation, quantised)
    if job.tuning is not None and has_classes(graph):
        made = job.tuning.trained(found, job.training, contract, floats)
        found = better(graph, [found, fitted(made, samples, job.perturbation, quantised)], job.tuning.validation, job.perturbation)
    job.write(form, found.quantised)


# By the name of a form.
EXPORTERS: dict[str, Exporter] = {
    "sparse": export_float32,
    "sequential": export_c,
    "fp16": export_half,
    "bf16": export_bf16,
    "int8": export_int8,
    "int8-c": export_int8_c,
    "dense": export_float32,
}
