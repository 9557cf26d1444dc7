"""Damaged recipes, settings, options and targets."""

from __future__ import annotations

from pathlib import Path

from damaged_cases import case


def recipe(folder: Path, text: str) -> list[str]:
    path = folder / "my.toml"
    path.write_text(text)
    return ["build", str(path), "--out", str(folder / "out")]


@case(2, "did you mean")
def recipe_of_no_such_name(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digit", "--out", str(folder / "out")]


@case(2, "not there")
def recipe_file_absent(folder: Path, artifact: Path) -> list[str]:
    return ["build", str(folder / "none.toml")]


@case(2, "recipe")
def recipe_is_a_directory(folder: Path, artifact: Path) -> list[str]:
    (folder / "dir.toml").mkdir()
    return ["build", str(folder / "dir.toml")]


@case(2, "not valid TOML")
def recipe_with_bad_syntax(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train\nepochs = ")


@case(2, "UTF-8")
def recipe_in_another_encoding(folder: Path, artifact: Path) -> list[str]:
    (folder / "my.toml").write_bytes(b'description = "\xff\xfe"\n')
    return ["build", str(folder / "my.toml")]


@case(2, "bytes")
def recipe_too_large(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "# " + "x" * 2**21)


@case(2, 'did you mean "sparsity"')
def recipe_with_a_misspelt_key(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nsparsty = 0.9")


@case(2, 'did you mean "train"')
def recipe_with_a_misspelt_section(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[trian]\nepochs = 3")


@case(2, "train.epochs")
def recipe_with_a_value_of_the_wrong_type(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[train]\nepochs = "many"')


@case(2, "train.sparsity")
def recipe_with_a_value_out_of_range(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nsparsity = 1.0")


@case(2, "train.learning_rate")
def recipe_with_nan(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nlearning_rate = nan")


@case(2, "property.epsilon")
def recipe_with_a_negative_radius(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[property]\nepsilon = "-8/255"')


@case(2, "property.epsilon")
def recipe_with_a_radius_over_zero(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[property]\nepsilon = "1/0"')


@case(2, "mean")
def recipe_whose_mean_and_std_differ(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[data]\nmean = [0.5]\nstd = [0.2, 0.2]")


@case(2, "channel")
def recipe_with_the_normalisation_of_other_data(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[data]\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]")


@case(2, "ramp")
def recipe_that_never_reaches_full_epsilon(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nwarmup = 0.5\nramp = 0.5")


@case(2, "engine")
def recipe_with_an_engine_that_cannot_do_it(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[train]\nobjective = "ibp"\nengine = "auto_lirpa"')


@case(2, "baseline")
def recipe_whose_gates_need_a_baseline(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "[train]\nbaseline = false\n[gates]\ncertified_loss = 0.03")


@case(2, "architecture")
def recipe_with_an_unknown_network(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[network]\narchitecture = "cnn44"')


@case(2, "cannot be imported")
def recipe_with_a_network_that_is_not_there(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, '[network]\narchitecture = "no_such_package.nets:make"')


@case(2, "GELU")
def recipe_with_an_operator_nobody_can_verify(folder: Path, artifact: Path) -> list[str]:
    (folder / "gelu_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes, width):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, classes))\n"
    )
    return recipe(folder, '[network]\narchitecture = "gelu_net:make"')


@case(2, "schema_version")
def recipe_of_a_later_version(folder: Path, artifact: Path) -> list[str]:
    return recipe(folder, "schema_version = 2")


@case(2, "section.key=value")
def setting_without_a_value(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--set", "train.epochs"]


@case(2, "contract")
def contract_that_does_not_exist(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--contract", "fp33"]


@case(2, "honour")
def contract_the_target_does_not_honour(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--contract", "bf16"]


@case(2, "such option")
def option_that_does_not_exist(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--sparsity", "0.9"]


@case(2, "did you mean")
def target_of_no_such_name(folder: Path, artifact: Path) -> list[str]:
    return ["build", "digits", "--target", "jetson-orin-nan"]


@case(2, "device")
def target_without_a_device(folder: Path, artifact: Path) -> list[str]:
    (folder / "t.toml").write_text('[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "fp32"\n')
    return ["build", "digits", "--target", str(folder / "t.toml")]


@case(2, "contract")
def target_with_an_unknown_contract(folder: Path, artifact: Path) -> list[str]:
    (folder / "t.toml").write_text('[device]\nkind = "host"\n[runtime]\nname = "onnxruntime"\n[precisions.fp32]\ncontract = "real"\n')
    return ["build", "digits", "--target", str(folder / "t.toml")]
