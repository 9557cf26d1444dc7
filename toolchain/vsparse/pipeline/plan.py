"""The stages of the road: what goes into each (its cache key), where its files lie in the artifact, and how it is run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vsparse import artifact
from vsparse.data import Splits, load
from vsparse.files import canonical_json, sha256_bytes
from vsparse.graph.ir import Graph
from vsparse.pipeline.cache import StageCache, stage_key
from vsparse.progress import Event, Reporter
from vsparse.recipe import Recipe
from vsparse.stages.export.c_source import compiler_version
from vsparse.stages.profile.machine import describe_machine
from vsparse.target import Target
from vsparse.worker import Workers

# What each stage's result depends on, beside its inputs: the modules that run in it.
CODE: dict[str, tuple[str, ...]] = {
    "train": ("data", "majority", "networks", "graph", "bounds", "second_opinion", "artifact/stage_files", "stages/train"),
    "compress": ("contract", "processor", "graph", "bounds", "reading", "artifact/stage_files", "stages/compress"),
    "export": ("data", "contract", "processor", "graph", "bounds", "reading", "artifact/hashes", "artifact/stage_files", "stages/export"),
    "verify": (
        "data",
        "graph",
        "bounds",
        "reading",
        "search",
        "contract",
        "processor",
        "second_opinion",
        "artifact/certificate",
        "artifact/counterexamples",
        "artifact/hashes",
        "artifact/proofs",
        "stages/export/c_source",
        "stages/verify",
    ),
    "profile": ("stages/profile",),
}
ROLES = ("sparse", "dense")


@dataclass(frozen=True)
class Stage:
    """One stage: its name in cache and lineage, its title for a person, its key, its folder in the artifact, and its work."""

    name: str
    title: str
    key: str
    folder: str
    work: Callable[[Path, Path, Workers, Reporter], None]


def run_stages(cache: StageCache, stages: list[Stage], jobs: int, reporter: Reporter) -> None:
    """Runs stages side by side, at most `jobs` at once; the first error ends the others, and so does an interrupt."""
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            reporter(event)

    def one(stage: Stage, workers: Workers) -> None:
        report(Event("start", stage.title))
        directory, _ = cache.run(stage.name, stage.key, lambda scratch, output: stage.work(scratch, output, workers, report))
        report(Event("done", stage.title, seconds=cache.seconds(directory)))

    with Workers() as workers, ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        futures = [pool.submit(one, stage, workers) for stage in stages]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2)
                for future in done:
                    future.result()
        except BaseException:
            workers.stop()
            for future in futures:
                future.cancel()
            raise


@dataclass(frozen=True)
class Plan:
    """The road for one recipe and target; keys are known before anything runs, as each follows from what goes in."""

    recipe: Recipe
    target: Target
    data: Path | None
    jobs: int
    splits: Splits
    cache: StageCache
    architecture_sha256: str
    untrained: Graph

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """`sparse` (the network that is asked for) and, for comparison, its dense parent."""
        train = self.recipe.train
        return ROLES if train.baseline and train.is_sparse else ROLES[:1]

    def groups(self, until: str) -> list[list[Stage]]:
        """Returns the stages up to `until`, those that can run side by side together."""
        groups = [[self._train(role) for role in self.roles]]
        if until != "train":
            groups.append([self._compress()])
        if until in ("export", "report"):
            groups.append([self._export()])
        if until == "report":
            groups.append([self._verify(role) for role in self.roles])
            groups[-1] += [self._verify_precision(one) for one in self.recipe.export.precisions]
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

    def _train(self, role: str) -> Stage:
        wanted = self.recipe.train.model_dump(mode="json", exclude={"baseline"})
        if role == "dense":
            for key in ("sparsity", "parameter_budget", "budget", "macs_per_byte", "sparse"):
                wanted.pop(key)
        inputs = {
            "data": self.splits.sha256,
            "augmentation": self.recipe.data.model_dump(mode="json", include={"mean", "std", "shift", "flip", "crop"}),
            "architecture": self.architecture_sha256,
            "train": wanted,
            "tools": {name: artifact.tool_versions()[name] for name in ("torch", "numpy", "auto_LiRPA", "machine")},
        }
        payload = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": None if self.data is None else str(self.data.absolute()),
            "sparse": role == "sparse",
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            title = f"train {role}"
            workers.run(
                "train", {**payload, "scratch": str(scratch), "output": str(output)}, lambda news: report(_epoch_event(title, news))
            )

        folder = "train" if role == "sparse" else f"train/{role}"
        return Stage(f"train-{role}", f"train {role}", stage_key("train", inputs, CODE["train"]), folder, work)

    def _compress(self) -> Stage:
        source = self._train("sparse")
        inputs = {"train": source.key, "exact": self.recipe.compress.exact}

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            from vsparse.stages.compress.task import compress_trained

            compress_trained(self.finished(source), output, self.recipe, self.splits)

        return Stage("compress", "compress", stage_key("compress", inputs, CODE["compress"]), "compress", work)

    def _export(self) -> Stage:
        packed = self._compress()
        dense = self._train("dense") if "dense" in self.roles else None
        inputs = {
            "packed": packed.key,
            "dense": None if dense is None else dense.key,
            "opset": self.recipe.export.opset,
            "name": self.recipe.name,
            "contract": self.recipe.verify.contract,
            "c_source": self.target.c_source,
            "precisions": list(self.recipe.export.precisions),
            # Training samples set the ranges of quantised activations.
            "calibration": self.splits.sha256 if self.recipe.export.precisions else "",
            "tools": {name: artifact.tool_versions()[name] for name in ("onnx", "onnxruntime")},
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            from vsparse.stages.export.task import export_models

            parent = None if dense is None else self.finished(dense)
            export_models(self.finished(packed), parent, output, self.recipe, self.splits.train, self.target.c_source)

        return Stage("export", "export", stage_key("export", inputs, CODE["export"]), "model", work)

    def _verify(self, role: str) -> Stage:
        models = self._export()
        inputs = {
            "models": models.key,
            "role": role,
            "data": self.splits.sha256,
            "property": self.recipe.property.model_dump(mode="json"),
            "verify": self.recipe.verify.model_dump(mode="json"),
            "tools": {name: artifact.tool_versions()[name] for name in ("torch", "numpy", "onnxruntime", "auto_LiRPA", "machine")},
            # The audit is about the machine it ran on; a cache may be shared by several.
            "processor": describe_machine().get("processor"),
            "c_compiler": compiler_version() if self.target.c_source else "",
        }
        payload = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": None if self.data is None else str(self.data.absolute()),
            "role": role,
            "jobs": max(1, self.jobs // len(self.roles)),
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            title = f"verify {role}"
            model = self.finished(models) / Path(artifact.MODEL if role == "sparse" else artifact.DENSE_MODEL).name
            task = {**payload, "model": str(model), "scratch": str(scratch), "output": str(output)}
            workers.run(
                "verify",
                task,
                lambda news: report(Event("progress", title, news.get("text", ""), news.get("done", 0), news.get("total", 0))),
            )

        folder = "certificate" if role == "sparse" else f"certificate/{role}"
        return Stage(f"verify-{role}", f"verify {role}", stage_key("verify", inputs, CODE["verify"]), folder, work)

    def _verify_precision(self, precision: str) -> Stage:
        models = self._export()
        rules = self.target.precisions[precision].contract
        inputs = {
            "models": models.key,
            "precision": precision,
            "contract": rules,
            "data": self.splits.sha256,
            "property": self.recipe.property.model_dump(mode="json"),
            "verify": self.recipe.verify.model_dump(mode="json"),
            "tools": {name: artifact.tool_versions()[name] for name in ("torch", "numpy", "onnxruntime", "machine")},
            "processor": describe_machine().get("processor"),
        }
        payload = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": None if self.data is None else str(self.data.absolute()),
            "precision": precision,
            "contract": rules,
            "jobs": max(1, self.jobs // len(self.roles)),
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            title = f"verify {precision}"
            model = self.finished(models) / Path(artifact.precision_model(precision)).name
            workers.run(
                "verify-precision",
                {**payload, "model": str(model), "scratch": str(scratch), "output": str(output)},
                lambda news: report(Event("progress", title, news.get("text", ""), news.get("done", 0), news.get("total", 0))),
            )

        key = stage_key("verify", inputs, CODE["verify"])
        return Stage(f"verify-{precision}", f"verify {precision}", key, f"certificate/{precision}", work)

    def _profile(self) -> Stage:
        models = self._export()
        machine = describe_machine()
        inputs = {
            "models": models.key,
            "profile": self.recipe.profile.model_dump(mode="json"),
            "tools": {"onnxruntime": artifact.tool_versions()["onnxruntime"]},
            "machine": {key: machine.get(key) for key in ("processor", "architecture", "cores")},
        }

        def work(scratch: Path, output: Path, workers: Workers, report: Reporter) -> None:
            from vsparse.stages.profile.task import profile_models

            def measured(share: float) -> None:
                report(Event("progress", "profile", "", int(100 * share), 100))

            profile_models(self.finished(models), output, self.recipe, measured)

        return Stage("profile", "profile", stage_key("profile", inputs, CODE["profile"]), "profile", work)


def plan_road(recipe: Recipe, target: Target, data: Path | None, jobs: int) -> Plan:
    """Loads the data, builds the untrained network (so that an operator nobody can verify is refused before training), and plans."""
    from vsparse.stages.train.task import untrained

    splits = load(recipe.data, data, recipe.train.seed)
    graph, own = untrained(recipe, splits)
    nodes = [repr(node) for node in graph.nodes]
    weights = {name: sha256_bytes(value.tobytes()) for name, value in graph.params.items()}
    architecture = sha256_bytes(canonical_json({"input": graph.input_shape, "nodes": nodes, "weights": weights, **own.as_dict()}))
    return Plan(recipe, target, data, jobs, splits, StageCache(), architecture, graph)


def _epoch_event(title: str, news: dict[str, Any]) -> Event:
    """Words an epoch for a person: loss, clean and robust accuracy on the validation split, density, time left."""
    robust = "withstands attack" if news["measure"] == "attack" else "certified"
    text = (
        f"loss {news['loss']:.3f}  clean {100 * news['clean']:.1f} %  {robust} {100 * news['certified']:.1f} %  "
        f"density {100 * news['density']:.1f} %  left {news['eta_s']:.0f} s"
    )
    return Event("progress", title, text, news["epoch"], news["epochs"])
