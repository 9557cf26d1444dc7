"""`vsparse train`, `compress` and `export`: one stage alone, on the artifact of the stage before, or on a network of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vsparse.artifact.document import parse
from vsparse.artifact.layers import LayerTable
from vsparse.cli.options import (
    ClusterOption,
    DataOption,
    DeviceOption,
    JobsOption,
    JsonOption,
    LogOption,
    OutOption,
    SeedOption,
    SettingOption,
    TensorboardOption,
    VerboseOption,
    print_json,
)
from vsparse.cli.progress import shown_progress
from vsparse.cli.results import show_build, show_layers
from vsparse.cli.sweep import (
    AxesOption,
    CertifyOption,
    FirstEpochsOption,
    HalvingOption,
    KeepOption,
    SamplerOption,
    SweepOption,
    TrialsOption,
    train_many,
)
from vsparse.errors import InputError


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""

    @app.command("train")
    def train_command(
        recipe: Annotated[str, typer.Argument(help="A shipped recipe or the path of a .toml file.")] = "digits",
        out: OutOption = None,
        data: DataOption = None,
        settings: SettingOption = None,
        device: DeviceOption = None,
        seed: SeedOption = None,
        sweep: SweepOption = None,
        halving: HalvingOption = None,
        first_epochs: FirstEpochsOption = None,
        keep: KeepOption = None,
        axes: AxesOption = None,
        certify: CertifyOption = False,
        sampler: SamplerOption = None,
        trials: TrialsOption = None,
        jobs: JobsOption = None,
        cluster: ClusterOption = None,
        log: LogOption = None,
        tensorboard: TensorboardOption = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Train a certified sparse network and its dense parent, and stop there; with --sweep, train many and compare them."""
        from vsparse.recipe import with_device
        from vsparse.training_log import logged

        options = {"--halving": halving, "--first-epochs": first_epochs, "--keep": keep, "--axes": axes, "--certify": certify or None}
        options |= {"--sampler": sampler, "--trials": trials}
        if sweep and (log or tensorboard):
            raise InputError(
                f"{'--log' if log else '--tensorboard'} is of one training, and --sweep trains many; train the configuration by itself"
            )
        if sweep:
            return train_many(recipe, sweep, options, out, data, with_device(device, settings), seed, jobs, cluster, json, verbose)
        options["--cluster"] = cluster
        alone = next((name for name, value in options.items() if value is not None), None)
        if alone is not None:
            raise InputError(f"{alone} goes with --sweep; say what to vary, such as --sweep 'train.sparsity=[0, 0.5, 0.9]'")
        from vsparse.pipeline.build import build

        with shown_progress(verbose) as shown, logged(shown, log, tensorboard, {"recipe": recipe, "set": list(settings or [])}) as reporter:
            result = build(
                recipe, out=out, data=data, settings=with_device(device, settings), seed=seed, jobs=jobs, until="train", reporter=reporter
            )
        show_build(result, json)
        return 0 if result.passed else 1

    @app.command("compress")
    def compress_command(
        source: Annotated[Path, typer.Argument(help="The artifact that `vsparse train` wrote, or an ONNX file of your own.")],
        out: Annotated[Path | None, typer.Option("--out", help="Where the result goes; default: in place, or MODEL.packed.onnx.")] = None,
        data: DataOption = None,
        unit_range: Annotated[
            bool, typer.Option("--unit-range", help="Of an ONNX file: all inputs lie in [0, 1], so remove what is dead there too.")
        ] = False,
        sparsity: Annotated[
            float | None,
            typer.Option("--sparsity", help="Of an ONNX file, with --data: fraction of the weights to remove in one shot, untrained."),
        ] = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Remove physically what masks, zeros and exact reductions allow; prints each layer before and after."""
        from vsparse.own_network import prune_onnx
        from vsparse.standalone import compress_onnx, continue_artifact

        with shown_progress(verbose) as reporter:
            if source.is_dir():
                if unit_range:
                    raise InputError(
                        f"--unit-range is of an ONNX file, and {source} is an artifact, whose inputs are in [0, 1]; leave it out"
                    )
                if sparsity is not None:
                    raise InputError(
                        f"--sparsity is of an ONNX file, and {source} is an artifact, whose sparsity was trained; leave it out, or give "
                        f"{source / 'model/model.fp32.onnx'}"
                    )
                packed_artifact = continue_artifact(source, "compress", out=out, data=data, reporter=reporter)
                show_build(packed_artifact, json, layers=True)
                return 0 if packed_artifact.passed else 1
            if sparsity is None:
                _refuse_data(data, source)
                packed = compress_onnx(source, out, unit_range)
            elif data is None:
                raise InputError("--sparsity is calibrated on samples; give them with --data, a file, a folder or the name of a dataset")
            elif unit_range:
                raise InputError("--sparsity is calibrated on samples in [0, 1], which says what --unit-range says; leave --unit-range out")
            else:
                packed = prune_onnx(source, sparsity, data, out, reporter=reporter)
        if json:
            print_json(packed)
        else:
            file = Path(packed["file"])
            show_layers(parse(LayerTable, {name: packed[name] for name in LayerTable.model_fields}, file), str(file))
            if "pruning" in packed:
                show_pruning(packed["pruning"])
        return 0

    @app.command("export")
    def export_command(
        source: Annotated[Path, typer.Argument(help="An artifact that was trained, or an ONNX file of your own.")],
        target: Annotated[
            str | None, typer.Option("--target", help="A target as of `build`; default: the artifact's own, or local for an ONNX file.")
        ] = None,
        out: Annotated[Path | None, typer.Option("--out", help="Where the result goes; default: in place, or MODEL-TARGET/.")] = None,
        data: DataOption = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> int:
        """Write the deployed files for a target: ONNX, the device/ folder, and a TensorRT engine where one can be built."""
        from vsparse.own_network import export_onnx
        from vsparse.pipeline.build import build
        from vsparse.standalone import continue_artifact

        with shown_progress(verbose) as reporter:
            if source.is_dir():
                exported_artifact = continue_artifact(source, "export", target=target, out=out, data=data, reporter=reporter)
                show_build(exported_artifact, json)
                return 0 if exported_artifact.passed else 1
            if data is not None:
                built = build(str(source), target=target or "local", out=out, data=data, reporter=reporter)
                show_build(built, json)
                return 0 if built.passed else 1
            exported = export_onnx(source, target or "local", out)
        if json:
            print_json(exported)
        else:
            print(exported["directory"])
            print(
                "without --data there is no certificate, as `vsparse check` says, and no form that is calibrated on samples",
                file=sys.stderr,
            )
        return 0


def _refuse_data(data: Path | None, source: Path) -> None:
    if data is not None:
        raise InputError(f"--data is for an artifact, or goes with --sparsity, and {source} is a file; leave it out")


def show_pruning(told: dict[str, Any]) -> None:
    """Prints what a one-shot pruning kept of each layer, and the accuracies before and after."""
    for layer in told["layers"]:
        print(f"{layer['name']}: {layer['kept']:,} of {layer['weights']:,} weights kept, squared error {100 * layer['error']:.2g} %")
    print(
        f"clean accuracy on {told['validation_samples']} validation samples: {100 * told['clean_accuracy_before']:.1f} % before, "
        f"{100 * told['clean_accuracy_after']:.1f} % after ({100 * told['sparsity']:.1f} % of the weights are zero; calibrated on "
        f"{told['calibration_samples']} training samples; a constant answer: {100 * told['majority_accuracy']:.1f} %)"
    )
