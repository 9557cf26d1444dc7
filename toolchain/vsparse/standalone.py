"""Single steps on an artifact or on a network of the user's own: compress, export, verify, profile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsparse import artifact
from vsparse.artifact.forms import FORMS
from vsparse.cluster.opened import opened, require_openable
from vsparse.contract import contract as contract_named
from vsparse.data.load import DRAWN
from vsparse.errors import InputError
from vsparse.files import canonical_json, sha256_bytes, sha256_file, write_bytes
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx, read_onnx
from vsparse.graph.normalised import write_normalised
from vsparse.notebook_progress import in_notebook
from vsparse.own_network import read_float32
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.cache import StageCache
from vsparse.progress import Event, Reporter
from vsparse.reading import Asked, ReadingEvidence, check_reading, check_written
from vsparse.recipe import Data, Verify
from vsparse.schema import validate
from vsparse.target import load_target

if TYPE_CHECKING:
    from vsparse.artifact.choice import FormChoice
    from vsparse.artifact.device import DeviceResults
    from vsparse.data import Splits
    from vsparse.pipeline.build import BuildResult, Until
    from vsparse.stages.profile import ProfileResult
    from vsparse.stages.verify import Certificate
    from vsparse.stages.verify.smoothing import Smoothing
    from vsparse.target import Target


def continue_artifact(
    source: Path,
    until: Until,
    *,
    target: str | None = None,
    out: Path | None = None,
    data: Path | None = None,
    reporter: Reporter = in_notebook,
) -> BuildResult:
    """Takes an artifact one or more stages further with the networks that were trained for it."""
    from vsparse.pipeline.build import build

    artifact.require_intact(source)
    return build(
        str(source / artifact.RECIPE),
        target=target or str(source / artifact.TARGET),
        out=out or source,
        data=data,
        contract=None,
        until=until,
        adopt=source,
        reporter=reporter,
    )


def compress_onnx(model: Path, out: Path | None = None, unit_range: bool = False) -> dict[str, Any]:
    """Packs an ONNX network of the user's own: units of zeros go, and what is left computes the same; returns the account of it.

    With `unit_range` every input value is promised to lie in [0, 1], and units that interval bounds prove dead there go too.
    """
    from vsparse.artifact.stage_files import write_graph
    from vsparse.stages.compress import compress
    from vsparse.stages.compress.task import account

    asked = Asked(inside=(0.0, 1.0)) if unit_range else Asked()
    reading = read_float32(model)
    evidence = check_reading(model, reading, optimised=False)  # what a runtime makes of the source matters for what is written alone
    result = compress(fold_batch_norm(reading.graph), {}, exact=unit_range)
    path = out or model.with_name(f"{model.stem}.packed.onnx")
    if path.resolve() == model.resolve():
        raise InputError(f"--out {path} is the model itself; choose another name")
    with tempfile.TemporaryDirectory(prefix="vsparse-compress-") as folder:
        write_graph(result.packed, trial := Path(folder) / path.name)
        written = check_written(trial, result.packed, source=reading.graph, exact=result.is_exact, asked=asked)
        write_bytes(path, trial.read_bytes())
    return {**account(result).model_dump(mode="json"), "file": str(path), "reading": evidence.as_dict(), "written": written.as_dict()}


def dataset_spec(name: str, regression: bool = False, shape: tuple[int, ...] = ()) -> tuple[Data, Path | None]:
    """Reads --data of `verify`: the name of a built-in dataset, or a file or folder, for `regression` with numbers to predict.

    `shape` is that of the network's input, by which the axes of an archive are told.
    """
    from vsparse.data.bundled import BUNDLED
    from vsparse.data.names import FOLDERS
    from vsparse.data.npz import layout_for
    from vsparse.data.table import TABLE_SUFFIXES

    path = Path(name)
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
        kind = " --set data.kind=regression --set train.objective=regression --set property.delta=D" if regression else ""
        raise InputError(
            f"--data {name} is a table, and verify does not know its target or units; certify the network on it with "
            f"`vsparse build MODEL.onnx --data {name} --set data.target=COLUMN{kind}`, or save inputs in [0, 1] and targets as .npz"
        )
    if name in FOLDERS or name in BUNDLED or not path.exists():
        return validate(Data, {"name": name}, "--data"), None
    layout, span = layout_for(path, shape)
    kind = "regression" if regression else "auto"
    return validate(
        Data, {"name": path.stem, "path": path.name, "kind": kind, "layout": layout, "range": span}, "--data"
    ), path.absolute().parent


def _splits(data: str, seed: int, reporter: Reporter, regression: bool = False, shape: tuple[int, ...] = ()) -> tuple[Splits, str]:
    """Loads the data of `verify` and its name; says what was left out, and where test samples are drawn from training ones."""
    from vsparse.data import load
    from vsparse.data.bundled import BUNDLED

    spec, root = dataset_spec(data, regression, shape)
    splits = load(spec, root, seed)
    for note in splits.notes:
        reporter(Event("warning", "data", note))
    if spec.name not in BUNDLED and splits.origins["test"].startswith(DRAWN):
        reporter(Event("warning", "data", f"test samples: {splits.origins['test']}; a network may have been trained on them"))
    return splits, spec.name


def verify(
    model: Path,
    *,
    data: str,
    perturbation: PerturbationSet,
    samples: int = 0,
    contract: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    jobs: int | None = None,
    settings: Verify | None = None,
    vnnlib: Path | None = None,
    cluster: str | None = None,
    device: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    reporter: Reporter = in_notebook,
) -> Certificate:
    """Certifies any ONNX classifier, or with perturbation.delta a network with one answer, on the test split of a dataset.

    The certificate is written to `out` where it is given.

    With `mean` and `std`, one for each channel or one for all on the scale from 0 to 1, what is certified is the network behind
    (x − mean) · (1 / std), for files that do not normalise themselves: an ONNX file of its own, `<name>.normalised.onnx`, in `out`. Claims
    are about that file, and the radius is on the scale from 0 to 1 all the same.

    With `cluster`, an address or `local:N`, the workers there judge the samples, to the same certificate; what they answered is kept in the
    cache until all is done, so that the same call after an interruption goes on.
    `device` is that of bounds, attacks and searches (cpu, cuda, cuda:N or auto; default: that of `settings`).
    With `vnnlib`, a folder, each claim's question is written there as a VNN-LIB property, for other verifiers.

    Raises GateError where ONNX Runtime would execute other weights than the file's (it folds something when it loads the file): then
    the graph that is bounded would not be the one that runs.
    """
    from vsparse.artifact.certificate import write_certificate
    from vsparse.compute_device import choose_device
    from vsparse.stages.export import check_runtime_graph
    from vsparse.stages.verify import certify
    from vsparse.stages.verify.properties import require_box, write_properties
    from vsparse.stages.verify.scaling import other_scaling

    require_openable(cluster)
    perturbation.require_within_range()
    if mean or std:
        asked = {"data": data, "perturbation": perturbation, "samples": samples, "contract": contract, "out": out, "seed": seed}
        asked |= {"jobs": jobs, "settings": settings, "vnnlib": vnnlib, "cluster": cluster, "device": device, "reporter": reporter}
        return _verify_normalised(model, mean, std, asked)
    wanted = settings or Verify()
    if device is not None:
        wanted = validate(Verify, {**wanted.model_dump(), "device": device}, "--device")
    choose_device(wanted.device, "verify.device" if device is None else "--device")
    chosen = contract_named(contract or "fp32")
    if vnnlib is not None:
        require_box(perturbation)
        if perturbation.regression:
            raise InputError("--vnnlib writes questions about classes, and --delta asks about a number; leave one of them out")
    splits, _ = _splits(data, seed, reporter, perturbation.regression, from_onnx(model).input_shape)
    dataset = splits.test
    if not chosen.exact:
        from_onnx(model)  # a damaged file, or an operator without bounds, is named before anything is executed
        check_runtime_graph(model)
    with opened(cluster) as address, _scratch(address, model, perturbation, chosen.name, str(samples), str(seed), data) as scratch:
        run = certify(
            model,
            dataset,
            perturbation,
            chosen,
            wanted,
            samples=samples,
            jobs=jobs or os.cpu_count() or 1,
            progress=lambda done, total: reporter(Event("progress", "verify", "", done, total)),
            state_directory=scratch,
            cluster=address,
            tell=lambda text: reporter(Event("warning", "verify", text)),
        )
    remark = "" if perturbation.regression else other_scaling(model, splits, samples)
    if remark:
        run = run.model_copy(update={"note": "; ".join(filter(None, (run.note, remark)))})
    if out is not None:
        write_certificate(out / "certificate.json", run)
    if vnnlib is not None:
        write_properties(vnnlib, run, model, dataset)
    return run


def _verify_normalised(model: Path, mean: Sequence[float], std: Sequence[float], asked: dict[str, Any]) -> Certificate:
    """Certifies the network behind its normalisation, with the arguments of `verify`."""
    from vsparse.artifact.certificate import write_certificate

    out: Path | None = asked["out"]
    with tempfile.TemporaryDirectory(prefix="vsparse-normalised-") as folder:
        path = Path(folder) / f"{model.stem}.normalised.onnx"
        write_normalised(model, mean, std, path)
        found = verify(path, **asked)
        kept = f"it is {path.name} beside the certificate" if out is not None else "give --out to keep that file"
        values = [",".join(f"{value:g}" for value in numbers) for numbers in (mean, std)]
        found = found.noted(f"certified is {model.name} behind a normalisation by mean {values[0]} and std {values[1]}: {kept}")
        if out is not None:
            write_bytes(out / path.name, path.read_bytes())
            write_certificate(out / "certificate.json", found)
    return found


@contextmanager
def _scratch(cluster: str | None, model: Path, perturbation: PerturbationSet, *asked: str) -> Iterator[Path]:
    """Yields a folder for the answers to batches: with a cluster one that an interrupted run finds again, in the cache."""
    if cluster is None:
        with tempfile.TemporaryDirectory(prefix="vsparse-verify-") as folder:
            yield Path(folder)
        return
    cache = StageCache()
    name = sha256_bytes(canonical_json([sha256_file(model), perturbation.model_dump(mode="json"), *asked]))
    with cache.lock(f"verify-{name[:16]}"):
        yield (kept := cache.root / "work" / f"verify-{name}")
        shutil.rmtree(kept, ignore_errors=True)  # not where an error or an interrupt ended the block


def smooth(
    model: Path,
    *,
    data: str,
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    samples: int = 0,
    out: Path | None = None,
    seed: int = 0,
    reporter: Reporter = in_notebook,
) -> Smoothing:
    """Certifies the smoothed classifier in l2, each claim with probability 1 − alpha; writes smoothing.json to `out` where it is given."""
    from vsparse.stages.verify.smoothing import Sampling
    from vsparse.stages.verify.smoothing import smooth as smoothed

    sampling = Sampling(sigma, n0, n, alpha, seed)
    splits, name = _splits(data, seed, reporter)
    result = smoothed(
        model,
        splits.test,
        sampling,
        samples=samples,
        data_name=name,
        progress=lambda done, total: reporter(Event("progress", "verify", "", done, total)),
    )
    if out is not None:
        result.write(out)
    return result


def profile(
    source: Path,
    *,
    host: str | None = None,
    runs: int | None = None,
    seconds: float | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    runtime: str | None = None,
    layers: bool = False,
    any_device: bool = False,
    timeout: float = 3600,
    keep: bool = False,
    remote_dir: str = "",
    save: Path | None = None,
    reporter: Reporter = in_notebook,
) -> ProfileResult:
    """Measures an artifact's model (beside its dense parent) or an ONNX file, on this machine or on a device over ssh.

    Here at least 300 runs and 2 seconds of them are timed, after 50 others, on one thread with one sample, unless it is said otherwise; on
    a device as its folder says. What a device measured with every runtime that it has is kept in the artifact, which then judges its gates
    and chooses anew. `runtime`, `any_device`, `timeout` (seconds), `keep` and `remote_dir` are those of the command line.
    """
    from vsparse.pipeline.on_device import conditions_here, measure_on_device
    from vsparse.stages.profile import AgentOptions, compare, layer_times, profile_onnx, profiled

    if host is not None:
        asked = AgentOptions(runs, seconds, warmup, threads, batch, runtime, layers, any_device, timeout, keep, remote_dir)
        answer, choice = measure_on_device(source, host, asked, save, reporter)
        only = "" if runtime is None else f"; {runtime} alone, so the artifact keeps the results that it has"
        return of_device(answer, f"measured on {host} ({answer.label}){only}", choice)
    if runtime not in (None, "onnxruntime"):
        raise InputError(f'runtime "{runtime}" is measured on a device (--host); on this machine there is onnxruntime')

    def progress(fraction: float) -> None:
        reporter(Event("progress", "profile", "", int(100 * fraction), 100))

    options: dict[str, Any] = {"runs": runs, "seconds": seconds, "warmup": warmup, "threads": threads, "batch": batch}
    options = {name: value for name, value in options.items() if value is not None} | {"progress": progress}
    meant: Target | None = None
    times_of = partial(layer_times, source, options) if layers else dict
    model = source
    if source.is_dir():
        artifact.require_intact(source)
        compare_models(source)
        meant = load_target(str(source / artifact.TARGET))
        packed, dense = source / artifact.MODEL, source / artifact.DENSE_MODEL
        if not packed.exists():
            raise InputError(f"artifact {source} has no {artifact.MODEL}; run `vsparse export {source}` first")
        if dense.exists():
            both = compare(dense, packed, **options)
            found = {"packed": both.packed} | ({} if both.dense is None else {"dense": both.dense})
            return profiled(found, both.ratio, both.model_dump(mode="json"), conditions_here(both.packed, meant, source), save, times_of())
        model = packed
    else:
        _compare_readable(model)
    measured = profile_onnx(model, **options)
    told = conditions_here(measured, meant, source)
    return profiled({model.name: measured}, None, measured.model_dump(mode="json"), told, save, times_of())


def profile_results(source: Path, results: Path) -> ProfileResult:
    """Puts a results.json that was copied from a device by hand into its artifact, which then judges its gates and chooses anew.

    Raises InputError for results about other models or another device, DeviceGateError where a gate failed on the device.
    """
    from vsparse.pipeline.judged import keep_results
    from vsparse.stages.profile import copied_results, failed_there

    artifact.require_intact(source)
    answer = copied_results(results, source)
    choice = keep_results(source, answer)
    if answer.failed:
        error = failed_there(answer, str(results))
        error.choice = choice
        raise error
    return of_device(answer, f"measured on {answer.label}", choice)


def of_device(answer: DeviceResults, conditions: str, choice: FormChoice | None) -> ProfileResult:
    """Returns what a device measured with what an artifact chooses by it, as `profile` does."""
    from vsparse.stages.profile import ProfileResult

    raw = answer.model_dump(mode="json") | {"emulated": answer.emulated, "not_certified_on_this_device": list(answer.uncertified)}
    raw |= {} if choice is None else {"choice": choice.model_dump(mode="json")}
    return ProfileResult(dict(answer.latencies()), answer.ratio, conditions, raw, choice, answer)


def compare_models(directory: Path) -> dict[str, ReadingEvidence]:
    """Executes each model file of an artifact and compares it with its reading; the evidence by file, raises as `check_reading` does."""
    names = dict.fromkeys(form.model for form in FORMS)
    return {name: check_reading(directory / name) for name in names if (directory / name).is_file()}


def _compare_readable(model: Path) -> None:
    """Compares a file with its reading, if it can be read: of one that cannot, nothing but its latency is told."""
    try:
        reading = read_onnx(model)
    except InputError:
        return
    check_reading(model, reading)
