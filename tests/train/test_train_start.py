"""Training from a trained network: its weights arrive whole, from each kind of file, or are refused by name."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from blob_data import blobs
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from vsparse.data import Splits
from vsparse.errors import InputError
from vsparse.graph import Graph, from_torch, run
from vsparse.graph.fold import fold_batch_norm
from vsparse.networks import make
from vsparse.pipeline.plan import make_plan
from vsparse.recipe import Network, Recipe, load_recipe
from vsparse.stages.export import write_onnx
from vsparse.stages.train import train
from vsparse.stages.train.start import network_of, pinned
from vsparse.stages.train.torch_file import read_torch_file
from vsparse.stages.train.trainer import Trainer
from vsparse.target import load_target

SHAPE = (1, 4, 4)
SPLITS = Splits(blobs(90, 0), blobs(30, 1), blobs(30, 2), "blobs", "0" * 64)


def recipe(start: Path | str, architecture: str = "cnn4", **settings: Any) -> Recipe:
    data = settings.pop("data", {})
    train_settings = {"epochs": 2, "batch_size": 16, "start": str(start), **settings}
    return Recipe.model_validate(
        {"name": "t", "data": data, "network": {"architecture": architecture, "width": 0.25}, "train": train_settings}
    )


def trained_module(architecture: str = "cnn4", seed: int = 7, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> nn.Module:
    """A module whose parameters and statistics are those of no initialisation."""
    module = make(Network(architecture=architecture, width=0.25), SHAPE, 3, mean, std, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and not name.startswith("normalise."):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator) if "norm" in name else value + 0.1)
    return module.eval()


def saved(directory: Path, content: Any, name: str = "start.pt") -> Path:
    torch.save(content, directory / name)
    return directory / name


def as_onnx(directory: Path, graph: Graph) -> Path:
    write_onnx(graph, directory / "start.onnx", 18, {})
    return directory / "start.onnx"


def exported(directory: Path, module: nn.Module, dynamo: bool) -> Path:
    path = directory / "start.onnx"
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs onnxscript")
        torch.onnx.export(module, (torch.zeros(1, *SHAPE),), path, dynamo=True, external_data=False)
    else:
        torch.onnx.export(module, (torch.zeros(1, *SHAPE),), path, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    return path


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return set(mine) == set(its) and all(torch.equal(mine[name], its[name]) for name in mine)


WRITERS: dict[str, Callable[[Path, nn.Module], Path]] = {
    "state_dict": lambda d, m: saved(d, m.state_dict()),
    "parameters": lambda d, m: saved(d, OrderedDict(m.state_dict(keep_vars=True))),
    "checkpoint": lambda d, m: saved(
        d, {"epoch": 3, "state_dict": m.state_dict(), "optimizer": torch.optim.Adam(m.parameters()).state_dict(), "loss": [0.5, None]}
    ),
    "data parallel": lambda d, m: saved(d, {f"module.{name}": value for name, value in m.state_dict().items()}),
    "safetensors": lambda d, m: Path(save_file(m.state_dict(), d / "w.safetensors") or d / "w.safetensors"),
    "half precision": lambda d, m: saved(d, m.bfloat16().float().bfloat16().state_dict()),
}


@pytest.mark.parametrize("architecture", ["cnn4", "cnn4-bn", "resnet-small"])
@pytest.mark.parametrize("kind", list(WRITERS))
def test_weights_arrive_whole(tmp_path: Path, kind: str, architecture: str) -> None:
    module = trained_module(architecture)
    path = WRITERS[kind](tmp_path, module)
    assert same(network_of(recipe(path, architecture), SHAPE, 3), module.float())


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("architecture", ["cnn4", "mlp"])
def test_files_of_torchs_exporters_arrive_whole(tmp_path: Path, architecture: str, dynamo: bool) -> None:
    module = trained_module(architecture)
    assert same(network_of(recipe(exported(tmp_path, module, dynamo), architecture), SHAPE, 3), module)


@pytest.mark.parametrize("architecture", ["cnn4-bn", "resnet-small"])
def test_an_onnx_file_with_batch_norm_arrives_whole(tmp_path: Path, architecture: str) -> None:
    module = trained_module(architecture)
    assert same(network_of(recipe(exported(tmp_path, module, dynamo=False), architecture), SHAPE, 3), module)


def test_batch_norm_of_a_file_is_folded_where_the_architecture_has_none(tmp_path: Path) -> None:
    module = trained_module("cnn4-bn")
    found = network_of(recipe(exported(tmp_path, module, dynamo=False), "cnn4"), SHAPE, 3)
    x = torch.rand(16, *SHAPE)
    assert torch.allclose(found(x), module(x), atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_the_normalisation_of_the_recipe_may_stand_in_the_file_or_not(tmp_path: Path, inside: bool) -> None:
    module = trained_module("cnn4", mean=(0.3,), std=(0.2,))
    assert isinstance(module, nn.Sequential)
    path = exported(tmp_path, module if inside else module[1], dynamo=False)
    wanted = recipe(path, data={"mean": [0.3], "std": [0.2]})
    assert same(network_of(wanted, SHAPE, 3), module)
    assert same(network_of(recipe(saved(tmp_path, module[1].state_dict()), data={"mean": [0.3], "std": [0.2]}), SHAPE, 3), module)
    assert same(network_of(recipe(saved(tmp_path, module.state_dict()), data={"mean": [0.3], "std": [0.2]}), SHAPE, 3), module)
    if inside:
        with pytest.raises(InputError, match=r"computes something else.*data\.mean"):
            network_of(recipe(path), SHAPE, 3)
    with pytest.raises(InputError, match=r'normalisation "normalise.*data.mean and data.std'):
        network_of(recipe(saved(tmp_path, module.state_dict()), data={"mean": [0.4], "std": [0.2]}), SHAPE, 3)


def test_dense_and_sparse_training_begin_at_the_start(tmp_path: Path) -> None:
    module = trained_module()
    path = saved(tmp_path, module.state_dict())
    for sparse in (True, False):
        trainer = Trainer(recipe(path), SPLITS, tmp_path / str(sparse), sparse)
        assert all(torch.equal(trainer.state.params[name], value) for name, value in module.state_dict().items())
    drawn = Trainer(recipe(""), SPLITS, tmp_path / "drawn", True)
    assert not torch.equal(drawn.state.params["conv1.weight"], module.state_dict()["conv1.weight"])


def test_what_was_learnt_stays(tmp_path: Path) -> None:
    """A training in steps of next to nothing answers as its start does, and from drawn weights it does not."""
    first = train(recipe("", epochs=20, learning_rate=0.02, objective="natural", sparsity=0), SPLITS, tmp_path / "a", sparse=False)
    path = as_onnx(tmp_path, first.graph)
    slow = {"learning_rate": 1e-9, "objective": "natural", "sparsity": 0}
    again = train(recipe(path, **slow), SPLITS, tmp_path / "b", sparse=False)
    drawn = train(recipe("", **slow), SPLITS, tmp_path / "c", sparse=False)
    x = torch.from_numpy(SPLITS.test.inputs(slice(None)))
    right = [
        float((run(net.graph, net.graph.tensors(), x).argmax(1).numpy() == SPLITS.test.labels).mean()) for net in (first, again, drawn)
    ]
    assert right[0] == right[1] > 0.9 > right[2]


def test_a_training_goes_on_from_its_checkpoint_and_not_from_that_of_another_start(tmp_path: Path) -> None:
    path = saved(tmp_path, trained_module().state_dict())
    whole = train(recipe(path), SPLITS, tmp_path / "whole", sparse=True)
    first = Trainer(recipe(path), SPLITS, tmp_path / "parts", sparse=True)
    first.run_epoch()
    first.save()
    moved = path.rename(tmp_path / "moved.pt")
    rest = Trainer(recipe(moved), SPLITS, tmp_path / "parts", sparse=True)
    assert rest.epoch == 1
    rest.run_epoch()
    assert all(np.array_equal(rest.result().graph.params[name], value) for name, value in whole.graph.params.items())
    saved(tmp_path, trained_module(seed=8).state_dict(), "moved.pt")
    assert Trainer(recipe(moved), SPLITS, tmp_path / "parts", sparse=True).epoch == 0


def test_the_key_of_a_training_is_the_files_content_and_not_its_place(tmp_path: Path) -> None:
    def keys(start: Path | str) -> list[str]:
        wanted = Recipe.model_validate(
            {"name": "t", "data": {"name": "digits"}, "network": {"width": 0.25}, "train": {"epochs": 1, "start": str(start)}}
        )
        plan = make_plan(wanted, load_target("local"), None, 1)
        assert all(stage.start_sha256 == plan.recipe.train.start_sha256 for stage in plan.stages("train"))
        return [stage.key for stage in plan.stages("report")]

    def content(seed: int) -> Any:
        return make(Network(width=0.25), (1, 8, 8), 10, seed=seed).state_dict()

    one, copy, other = (saved(tmp_path, content(seed), f"{name}.pt") for name, seed in (("one", 5), ("copy", 5), ("other", 6)))
    copy.write_bytes(one.read_bytes())
    assert keys(one) == keys(copy)
    assert not set(keys(one)) & set(keys(other))
    assert not set(keys(one)) & set(keys(""))


def test_a_pinned_start_is_refused_once_its_file_has_changed(tmp_path: Path) -> None:
    path = saved(tmp_path, trained_module().state_dict())
    known = pinned(recipe(path))
    assert len(known.train.start_sha256) == 64
    network_of(known, SHAPE, 3)
    saved(tmp_path, trained_module(seed=8).state_dict())
    for act in (lambda: network_of(known, SHAPE, 3), lambda: pinned(known)):
        with pytest.raises(InputError, match=r"is another file than train.start_sha256 says"):
            act()


def test_a_relative_start_is_relative_to_the_recipes_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "own.toml"
    path.write_text('[train]\nstart = "weights.pt"\n')
    monkeypatch.chdir(tmp_path)
    assert load_recipe("inner/own.toml").train.start == str(tmp_path / "inner" / "weights.pt")
    assert pinned(recipe(saved(tmp_path, {"a": torch.ones(1)}).name)).train.start == str(tmp_path / "start.pt")
    assert load_recipe("inner/own.toml", ["train.start=other.pt"]).train.start == "other.pt"


def test_a_recipe_without_a_start_says_nothing_of_it() -> None:
    assert not {"start", "start_sha256"} & set(load_recipe("digits").model_dump()["train"])


# What is refused ------------------------------------------------------------------------------------------------------


def changed(module: nn.Module, **tensors: Tensor | None) -> dict[str, Tensor]:
    state = dict(module.state_dict())
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


SHARED = torch.rand(3)
REFUSED_TENSORS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "missing": (lambda m: changed(m, conv2__weight=None), 'lacks "conv2.weight" of network.architecture cnn4'),
    "renamed": (lambda m: changed(m, fc1__bias=None, fc1__offset=torch.ones(25)), 'lacks "fc1.bias".*holds "fc1.offset" instead'),
    "unknown": (lambda m: changed(m, fc2__bias=torch.ones(3)), 'holds "fc2.bias", which.*did you mean "fc1.bias"'),
    "shape": (lambda m: changed(m, logits__bias=torch.ones(4)), r'"logits.bias" has the shape \[4\] in it and \[3\]'),
    "double": (lambda m: changed(m, logits__bias=torch.ones(3).double()), r'"logits.bias" is torch.float64.*\.float\(\)'),
    "integers": (lambda m: changed(m, logits__bias=torch.ones(3).int()), '"logits.bias" is torch.int32'),
    "NaN": (lambda m: changed(m, logits__bias=torch.tensor([0, np.nan, 0], dtype=torch.float32)), '"logits.bias" holds numbers that are'),
    "tied": (
        lambda m: changed(m, conv1__bias=(base := torch.rand(8))[:4], conv2__bias=base),
        '"conv2.bias" and "conv1.bias" are tied',
    ),
    "no tensors": (lambda m: {"epoch": 3}, "holds epoch, and no single dictionary"),
    "two networks": (lambda m: {"model": m.state_dict(), "net": m.state_dict()}, "holds model, net, and no single dictionary"),
    "a list": (lambda m: [torch.ones(3)], "holds a list, no dictionary"),
    "empty": (lambda m: {}, "holds nothing"),
    "whole module": (lambda m: m, r"Python object torch\.nn\.modules.*torch\.save\(network\.state_dict\(\)"),
    "numpy": (lambda m: {"state_dict": m.state_dict(), "loss": np.float64(3)}, "Python object numpy"),
}


@pytest.mark.parametrize("case", list(REFUSED_TENSORS))
def test_other_tensors_are_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = REFUSED_TENSORS[case]
    path = saved(tmp_path, content(trained_module()))
    with pytest.raises(InputError, match=f"^train.start {path}: .*{message}") as found:
        network_of(recipe(path), SHAPE, 3)
    assert "\n" not in str(found.value)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def test_code_in_a_checkpoint_is_never_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, {"a": torch.ones(3)})
    files = {"torch": saved(tmp_path, {"state_dict": _Evil()}, "evil.pt").read_bytes()}
    for protocol in (2, 4):
        inner = pickle.dumps({"a": _Evil()}, protocol)
        files[f"repacked {protocol}"] = repacked(good, lambda name, data, inner=inner: inner if name.endswith("data.pkl") else data)
        files[f"pickle {protocol}"] = inner
    for kind, data in files.items():
        path = tmp_path / "start.pt"
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"print|opcode|Python pickle, which is never read"):
            network_of(recipe(path), SHAPE, 3)
        assert "executed" not in capsys.readouterr().out, kind


def test_a_tensor_cannot_claim_more_than_its_record(tmp_path: Path) -> None:
    good = saved(tmp_path, {"a": torch.ones(3)})
    damaged = {
        "short": repacked(good, lambda name, data: data[:-4] if name.endswith("data/0") else data),
        "longer claim": repacked(good, lambda name, data: data.replace(b"K\x03", b"K\x7f") if name.endswith("data.pkl") else data),
        "one claim": repacked(good, lambda name, data: data.replace(b"K\x03", b"K\x7f", 1) if name.endswith("data.pkl") else data),
        "stride": repacked(good, lambda name, data: data.replace(b"K\x01\x85", b"K\x09\x85") if name.endswith("data.pkl") else data),
        "bomb": repacked(good, lambda name, data: bytes(10**6) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED),
        "cut": good.read_bytes()[:-40],
    }
    assert torch.equal(read_torch_file(good.read_bytes())["a"], torch.ones(3))
    for kind, data in damaged.items():
        assert data != good.read_bytes(), kind
        with pytest.raises(InputError, match=r"no file of torch.save, or is damaged"):
            read_torch_file(data)


def test_an_expanded_tensor_is_refused_and_a_transposed_one_is_not(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(read_torch_file(saved(tmp_path, {"a": turned}).read_bytes())["a"], turned)
    with pytest.raises(InputError, match="1000000000 elements is claimed of a storage of 1"):
        read_torch_file(saved(tmp_path, {"a": torch.ones(1).expand(10**9)}).read_bytes())


def test_every_cut_and_every_changed_byte_ends_in_a_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = saved(tmp_path, {"a": torch.ones(3), "b": OrderedDict(c=torch.zeros(2, 2))}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        main = archive.read("start/data.pkl")
    for _ in range(300):
        damaged = bytearray(main)
        damaged[rng.integers(len(main))] = rng.integers(256)
        data = repacked(tmp_path / "start.pt", lambda name, old, new=bytes(damaged): new if name.endswith("data.pkl") else old)
        with suppress(InputError):
            read_torch_file(data)
    for end in range(0, len(good), 37):
        with pytest.raises(InputError):
            read_torch_file(good[:end])


class _Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 4, 2, 1), nn.Conv2d(4, 8, 4, 2, 1)
        self.fc1, self.logits = nn.Linear(8, 25), nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.conv2(torch.relu(self.conv1(x))), 0.1)
        return self.logits(torch.relu(self.fc1(x.flatten(1))))


def other_stride() -> nn.Module:
    module = _Leaky()
    module.conv1 = nn.Conv2d(1, 4, 4, 2, 1, dilation=1, groups=1)
    module.conv2 = nn.Conv2d(4, 8, 2, 2, 0)
    return module


REFUSED_ONNX: dict[str, tuple[Callable[[], tuple[Graph, str]], str]] = {
    "another architecture": (
        lambda: (from_torch(trained_module("mlp"), SHAPE), "cnn4"),
        r'layer 1 is "fc1" \(Gemm \[25, 16\]\), and that of network.architecture cnn4 is "conv1" \(Conv',
    ),
    "another kernel": (lambda: (from_torch(other_stride(), SHAPE), "cnn4"), r'layer 2 is "conv2" \(Conv \[8, 4, 2, 2\].*padding \[0, 0'),
    "another function": (
        lambda: (from_torch(_Leaky(), SHAPE), "cnn4"),
        r"of the others number 2 is .* \(LeakyRelu\), and that of .* \(Relu\)",
    ),
    "folded": (lambda: (fold_batch_norm(from_torch(trained_module("cnn4-bn"), SHAPE)), "cnn4-bn"), "batch norm is folded.*state_dict"),
    "other classes": (
        lambda: (from_torch(make(Network(width=0.25), SHAPE, 5), SHAPE), "cnn4"),
        r'layer 4 is "logits" \(Gemm \[5, 25\]\).*\[3, 25\]',
    ),
    "another input": (
        lambda: (from_torch(make(Network(width=0.25), (1, 8, 8), 3), (1, 8, 8)), "cnn4"),
        r"reads inputs of shape \[1, 8, 8\], and the data have \[1, 4, 4\]",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED_ONNX))
def test_the_onnx_file_of_another_architecture_is_refused_by_its_layer(tmp_path: Path, case: str) -> None:
    content, message = REFUSED_ONNX[case]
    graph, architecture = content()
    with pytest.raises(InputError, match=message):
        network_of(recipe(as_onnx(tmp_path, graph), architecture), SHAPE, 3)


def test_one_weight_that_two_layers_read_is_refused_and_one_bias_is_not(tmp_path: Path) -> None:
    module = make(Network(architecture="mlp", width=0.25), (1, 5, 5), 25)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.eye(25) if value.dim() == 2 else torch.ones(25))
    model = onnx.load(as_onnx(tmp_path, from_torch(module, (1, 5, 5))))
    for ending, fails in (("bias", False), ("weight", True)):
        first = next(one.name for one in model.graph.initializer if one.name.endswith(ending))
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name.endswith(ending):
                    node.input[index] = first
        path = tmp_path / "tied.onnx"
        onnx.save(model, path)
        if fails:
            with pytest.raises(InputError, match='layers "fc1" and "fc2" are tied'):
                network_of(recipe(path, "mlp"), (1, 5, 5), 25)
        else:
            assert same(network_of(recipe(path, "mlp"), (1, 5, 5), 25), module)


def frozen_network(*_: object) -> nn.Module:
    module = trained_module()
    module.get_submodule("conv2").requires_grad_(False)
    return module


def test_frozen_parameters_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsparse.stages.train.start.make", frozen_network)
    with pytest.raises(InputError, match=r'"conv2.weight" of network.architecture .* is frozen.*train.initialisation = "module"'):
        network_of(recipe(saved(tmp_path, trained_module().state_dict())), SHAPE, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "it is an image; an ONNX file"),
        (b"[train]\n", "it is a text file"),
        (bytes(40), "it is none of these"),
        (b"", "it is none of these"),
        (save_safetensors({"a": torch.ones(3)})[:-4], "it is damaged"),
        (b"(" + bytes(7) + b'{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,1]}}'[:40] + b"x", "it is damaged"),
        (b"\x08\x08:\x02\x00", "cannot be decoded|no network"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "start"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        network_of(recipe(path), SHAPE, 3)


def test_a_file_that_is_absent_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"train.start .*nowhere.pt is not there"):
        pinned(recipe(tmp_path / "nowhere.pt"))
    path = saved(tmp_path, trained_module().state_dict())
    monkeypatch.setattr("vsparse.stages.train.start.MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than the 100 that are read"):
        pinned(recipe(path))


def test_a_variance_below_zero_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, changed(trained_module("cnn4-bn"), norm1__running_var=torch.tensor([1.0, -1.0, 1.0, 1.0])))
    with pytest.raises(InputError, match=r'"norm1\.running_var" holds variances below zero'):
        network_of(recipe(path, "cnn4-bn"), SHAPE, 3)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    for kind in ("he", "glorot", "interval"):
        with pytest.raises(ValueError, match=f'train.initialisation = "{kind}" would draw them anew'):
            recipe("x.pt", initialisation=kind)
    recipe("x.pt", initialisation="module")
    with pytest.raises(ValueError, match=r"train.start_sha256 is that file's"):
        recipe("", start_sha256="0" * 64)
    lottery = {"method": "lottery", "granularity": "element", "rewind": "random"}
    path = saved(tmp_path, trained_module().state_dict())
    with pytest.raises(InputError, match=r'rewind = "random" draws weights anew, and train.start says not how'):
        Trainer(recipe(path, sparse=lottery), SPLITS, tmp_path / "x", True)
