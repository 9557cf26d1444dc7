"""The stages of the pipeline: what goes into each (its cache key), where its files lie in the artifact, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vsparse import artifact
from vsparse.artifact.forms import BY_NAME, SPARSE, VARIANTS, DeployedForm, Variant
from vsparse.compute_device import choose_device, device_label
from vsparse.data import Splits, load
from vsparse.files import canonical_json, sha256_bytes
from vsparse.graph.ir import Graph
from vsparse.pipeline.cache import StageCache
from vsparse.pipeline.fits import require_fit
from vsparse.pipeline.keys import code_hash, stage_key
from vsparse.pipeline.requirements import require_forms, without_impossible
from vsparse.pipeline.stage import Stage
from vsparse.pipeline.steps import resolved
from vsparse.pipeline.tables import with_features
from vsparse.pipeline.training_line import training_reporter
from vsparse.pipeline.wanted import wanted_forms
from vsparse.progress import Event, Reporter
from vsparse.recipe import AUTO, Recipe
from vsparse.second_opinion import absence
from vsparse.stages.export.c_source import compiler_version
from vsparse.stages.export.c_source.eva import eva_version
from vsparse.stages.export.firmware.link import cross_compiler_version
from vsparse.stages.profile.machine import describe_machine
from vsparse.target import Target
from vsparse.worker import Workers

# What each stage's result depends on, beside its inputs: the modules that run in it.
CODE: dict[str, tuple[str, ...]] = {
    "train": (
        "compute_device",
        "data",
        "draws",
        "majority",
        "networks",
        "graph",
        "perturbation",
        "bounds",
        "reading",
        "second_opinion",
        "artifact/history",
        "artifact/stage_files",
        "stages/train",
    ),
    "compress": ("contract", "processor", "graph", "bounds", "reading", "artifact/layers", "artifact/stage_files", "stages/compress"),
    "export": (
        "data",
        "contract",
        "processor",
        "graph",
        "perturbation",
        "bounds",
        "reading",
        "artifact/hashes",
        "artifact/forms",
        "artifact/models",
        "artifact/stage_files",
        "stages/export",
    ),
    "verify": (
        "compute_device",
        "data",
        "graph",
        "perturbation",
        "bounds",
        "reading",
        "search",
        "contract",
        "processor",
        "second_opinion",
        "artifact/certificate",
        "artifact/checks",
        "artifact/counterexamples",
        "artifact/curve",
        "artifact/forms",
        "artifact/hashes",
        "artifact/live",
        "artifact/proofs",
        "stages/export/c_source",
        "stages/export/c_int8",
        "stages/export/c_live",
        "stages/verify",
    ),
    "profile": ("artifact/forms", "artifact/hashes", "artifact/latency", "stages/export/c_source/compile", "stages/profile"),
}


@dataclass(frozen=True)
class Plan:
    """The pipeline for one recipe and target; keys are known before anything runs, as each follows from what goes in.

    `cluster` is the address of a Dask scheduler whose workers verify, which changes no result. `no_second_verifier` is why no cross-check
    will be run (auto_LiRPA is not installed), empty where it will: decided here, before anything is trained.
    """

    recipe: Recipe
    target: Target
    data: Path | None
    jobs: int
    splits: Splits
    cache: StageCache
    architecture_sha256: str
    untrained: Graph
    cluster: str | None = None
    no_second_verifier: str = ""
    left_out: tuple[str, ...] = ()

    @cached_property
    def forms(self) -> dict[DeployedForm, str]:
        """The deployed forms that are asked for, each with its numeric contract."""
        return wanted_forms(self.recipe, self.target)

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """`sparse` (the network that is asked for) and, for comparison, its dense parent."""
        return tuple(variant for variant in VARIANTS if any(form.variant == variant for form in self.forms))

    def groups(self, until: str) -> list[list[Stage]]:
        """Returns the stages up to `until`, those that can run side by side together."""
        groups = [[self._train(variant) for variant in self.variants]]
        if until != "train":
            groups.append([self._compress()])
        if until in ("export", "report"):
            groups.append([self._export()])
        if until == "report":
            groups.append([self._verify(form) for form in self.forms if not form.follows])
            groups.append([self._profile()])
        return groups

    def stages(self, until: str) -> list[Stage]:
        """Returns the stages up to `until` in order."""
        return [stage for group in self.groups(until) for stage in group]

    def finished(self, stage: Stage) -> Path:
        """Returns the directory of a stage that has run."""
        found = self.cache.finished(stage.name, stage.key)
        if found is None:
            raise RuntimeError(f"stage {stage.name} has not run")
        return found

    def _train(self, variant: Variant) -> Stage:
        wanted = self.recipe.train.model_dump(mode="json", exclude={"baseline", "device", "start"})  # start_sha256 stays
        label = device_label(choose_device(self.recipe.train.device, "train.device"))
        if label != "cpu":  # another device computes other numbers, whichever name it was asked for by
            wanted["device"] = label
        if variant == "dense":
            for key in ("sparsity", "parameter_budget", "budget", "macs_per_byte", "sparse"):
                wanted.pop(key)
        # Installing it later, for the cross-check, must not train again what its bounds do not train.
        tools = ["torch", "numpy", "machine", *(["auto_LiRPA"] if self.recipe.train.engine == "auto_lirpa" else [])]
        inputs = {
            "data": self.splits.sha256,
            "augmentation": self.recipe.data.model_dump(mode="json", include={"mean", "std", "shift", "flip", "crop"}),
            "architecture": self.architecture_sha256,
            "train": wanted,
            "tools": {name: artifact.tool_versions()[name] for name in tools},
            **({"validated_by": "live budget" if self.recipe.deploy.live_budget else "live"} if self.recipe.deploy.live else {}),
        }
        payload = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": None if self.data is None else str(self.data.absolute()),
            "sparse": variant == "sparse",
        }
        title = f"train {variant}"

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
            task = {**payload, "scratch": str(scratch), "output": str(output)}
            workers.run("train", task, training_reporter(title, report))

        folder = "train" if variant == "sparse" else f"train/{variant}"
        key = stage_key("train", inputs, CODE["train"])
        spec = self.recipe.train
        return Stage(f"train-{variant}", title, key, folder, work, processes=spec.processes, start_sha256=spec.start_sha256)

    def _compress(self) -> Stage:
        source = self._train("sparse")
        inputs = {"train": source.key, "exact": self.recipe.compress.exact}

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
            from vsparse.stages.compress.task import compress_trained

            compress_trained(self.finished(source), output, self.recipe, self.splits)

        return Stage("compress", "compress", stage_key("compress", inputs, CODE["compress"]), "compress", work)

    def _export(self) -> Stage:
        packed = self._compress()
        dense = self._train("dense") if "dense" in self.variants else None
        machine, costs = self.target.device.compiler_options, self.target.kernel_costs
        inputs = {
            "packed": packed.key,
            "dense": None if dense is None else dense.key,
            "opset": self.recipe.export.opset,
            "name": self.recipe.name,
            "forms": {form.name: contract for form, contract in self.forms.items()},
            "runtime": self.target.runtime.name,
            "calibration": self._calibration(),
            "tools": {name: artifact.tool_versions()[name] for name in ("onnx", "onnxruntime")},
            "c": [
                self.recipe.export.c_prefix,
                self.recipe.export.c_weights,
                *machine,
                *([cross_compiler_version()] if machine else []),
                *self._analysis(),
            ],
            **({} if costs is None else {"kernel_costs": costs.model_dump()}),
            # What certifies its own input is tried on training samples, at radii around the property's.
            **({"live": [self.splits.sha256, self.recipe.property.model_dump(mode="json")]} if self.recipe.deploy.live else {}),
            **({"live_budget": True} if self.recipe.deploy.live_budget else {}),
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
            from vsparse.stages.export.c_source.costs import costs_of
            from vsparse.stages.export.exporters import ExecutedBy
            from vsparse.stages.export.task import export_models

            def tuned(done: int, total: int) -> None:
                report(Event("progress", "export", "int8, trained on as it rounds", done, total))

            def tell(text: str, missed: bool) -> None:
                report(Event("warning" if missed else "note", "export", text))

            parent = None if dense is None else self.finished(dense)
            splits, how = self.splits, ExecutedBy(self.target.runtime.name, machine, costs_of(costs))
            export_models(self.finished(packed), parent, output, self.recipe, splits.train, self.forms, how, splits.validation, tuned, tell)

        return Stage("export", "export", stage_key("export", inputs, CODE["export"]), "model", work)

    def _analysis(self) -> list[Any]:
        """Returns what the analysis of the C depends on, where it is asked for."""
        seconds = self.recipe.export.c_analysis_seconds
        return [seconds, eva_version()] if seconds else []

    def _calibration(self) -> list[Any] | str:
        """Returns what makes a quantised network beside the packed one, empty where there is none.

        Training samples set the ranges of activations, margins over the perturbation set choose among them, and it is trained on.
        """
        recipe = self.recipe
        if not recipe.export.precisions:
            return ""
        how = recipe.export.model_dump(mode="json", include={"float_layers", "int8_epochs"})
        if AUTO in recipe.export.float_layers:
            how["certified_loss"] = recipe.choose.certified_loss
        trained = [recipe.data.model_dump(mode="json"), recipe.train.model_dump(mode="json", exclude={"start"})]
        return [self.splits.sha256, recipe.property.model_dump(mode="json"), how, trained, code_hash(*CODE["train"])]

    def _verify(self, form: DeployedForm) -> Stage:
        """Returns the stage that certifies a form, and those whose claims follow from it."""
        models = self._export()
        contracts = {one.name: contract for one, contract in self.forms.items() if form.name in (one.name, one.follows)}
        tools = ["torch", "numpy", "onnxruntime", "machine", *(["auto_LiRPA"] if form.cross_checked else [])]
        wanted = self.recipe.verify.model_dump(mode="json", exclude={"device"})
        label = device_label(choose_device(self.recipe.verify.device, "verify.device"))
        if label != "cpu":
            wanted["device"] = label
        inputs = {
            "models": models.key,
            "forms": contracts,
            "data": self.splits.sha256,
            "property": self.recipe.property.model_dump(mode="json"),
            "verify": wanted,
            "tools": {name: artifact.tool_versions()[name] for name in tools},
            # The audit is about the machine it ran on; a cache may be shared by several.
            "processor": describe_machine().get("processor"),
            "runtime": self.target.runtime.name,
            "c_compiler": "" if all(BY_NAME[name].is_onnx for name in contracts) else compiler_version(),
            **({"cross_check": "absent"} if form.cross_checked and self.no_second_verifier else {}),
            **({"live": compiler_version()} if self.recipe.deploy.live and form is SPARSE else {}),
            **({"live_budget": self.recipe.deploy.live_budget} if self.recipe.deploy.live_budget and form is SPARSE else {}),
        }
        payload = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": None if self.data is None else str(self.data.absolute()),
            "form": form.name,
            "contracts": contracts,
            "runtime": self.target.runtime.name,
            "no_second_verifier": self.no_second_verifier if form.cross_checked else "",
        }
        title = f"verify {form.name}"

        def told(message: dict[str, Any]) -> Event:
            return Event("progress", title, message.get("text", ""), message.get("done", 0), message.get("total", 0))

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
            paths = {"models": str(self.finished(models)), "scratch": str(scratch), "output": str(output)}
            workers.run("verify", {**payload, **paths, "jobs": jobs, "cluster": self.cluster}, lambda message: report(told(message)))

        return Stage(f"verify-{form.name}", title, stage_key("verify", inputs, CODE["verify"]), form.folder, work, shares=True)

    def _profile(self) -> Stage:
        models = self._export()
        machine = describe_machine()
        inputs = {
            "models": models.key,
            "profile": self.recipe.profile.model_dump(mode="json"),
            "tools": {"onnxruntime": artifact.tool_versions()["onnxruntime"]},
            "c_compiler": "" if all(form.is_onnx for form in self.forms) else compiler_version(),
            "machine": {key: machine.get(key) for key in ("processor", "architecture", "cores")},
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter, jobs: int) -> None:
            from vsparse.stages.profile.task import profile_models

            def measured(fraction: float) -> None:
                report(Event("progress", "profile", "", int(100 * fraction), 100))

            profile_models(self.finished(models), output, self.recipe, list(self.forms), measured)

        return Stage("profile", "profile", stage_key("profile", inputs, CODE["profile"]), "profile", work)


def make_plan(recipe: Recipe, target: Target, data: Path | None, jobs: int, choose_forms: bool = False) -> Plan:
    """Loads the data, builds the untrained network (so that an operator nobody can verify is refused before training), and plans.

    With `choose_forms`, precisions that the network cannot be written in are left out, and the plan says which and why.
    The plan's recipe has the batch size and the epochs that fit the data, where the recipe leaves them out.
    """
    from vsparse.stages.train.start import pinned
    from vsparse.stages.train.task import untrained

    splits = load(recipe.data, data, recipe.train.seed)
    recipe = pinned(resolved(with_features(recipe, splits), len(splits.train)))
    graph, own = untrained(recipe, splits)
    left_out: tuple[str, ...] = ()
    if choose_forms:
        recipe, left_out = without_impossible(recipe, target, graph, splits.train)
    require_forms(wanted_forms(recipe, target), recipe, graph, splits.train)
    require_fit(recipe, target, graph)
    nodes = [repr(node) for node in graph.nodes]
    weights = {name: sha256_bytes(value.tobytes()) for name, value in graph.params.items()}
    architecture = sha256_bytes(canonical_json({"input": graph.input_shape, "nodes": nodes, "weights": weights, **own.as_dict()}))
    return Plan(recipe, target, data, jobs, splits, StageCache(), architecture, graph, no_second_verifier=absence(), left_out=left_out)
