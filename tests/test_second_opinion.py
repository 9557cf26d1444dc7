"""auto_LiRPA through the shim: loaded, quiet, right by hand, and sorry in one sentence where it is absent."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from vsparse import second_opinion
from vsparse.bounds import ball, crown, interval, refine
from vsparse.errors import InputError, UnavailableError
from vsparse.graph import from_torch


def test_self_test_computes_what_is_right_by_hand() -> None:
    assert second_opinion.self_test() == pytest.approx(-4 / 3, abs=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bounds_of_grouped_convolutions_are_ours(groups: int) -> None:
    torch.manual_seed(groups)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    graph = from_torch(net.eval(), (1, 6, 6))
    params, box = graph.tensors(torch.float64), ball(torch.rand(2, 1, 6, 6), Fraction(1, 20))
    rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    boxes = refine(graph, params, box, interval(graph, params, box), None, only_unstable=False, intersect=False)
    theirs = second_opinion.crown_lower(net, *box, rows)
    torch.testing.assert_close(theirs, crown(graph, params, box, rows, boxes), rtol=1e-9, atol=1e-9)


def test_self_test_notices_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "_bound", lambda *_: torch.tensor([[-1.3]]))
    with pytest.raises(UnavailableError, match=r"computes -1\.[23]"):
        second_opinion.self_test()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", second_opinion.METHODS)
def test_every_method_bounds_from_below(method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))
    x, rows = torch.rand(2, 1, 8, 8, dtype=dtype), torch.randn(2, 3, 4, dtype=dtype)
    bound = second_opinion.crown_lower(net, x - 0.1, x + 0.1, rows, method)
    assert bound.shape == (2, 3)
    assert bound.dtype == dtype
    points = x[:, None] - 0.1 + 0.2 * torch.rand(2, 500, 1, 8, 8, dtype=dtype)
    values = net.to(dtype)(points.flatten(0, 1)).detach().view(2, 500, 4) @ rows.transpose(1, 2)
    assert (values.amin(dim=1) >= bound - 1e-4).all()
    assert torch.get_default_dtype() == torch.float32


def test_the_network_is_not_changed() -> None:
    net = nn.Linear(2, 2)
    second_opinion.crown_lower(net, torch.zeros(1, 2).double(), torch.ones(1, 2).double(), torch.eye(2)[None].double())
    assert net.weight.dtype == torch.float32


def test_loading_prints_nothing_and_leaves_logging_and_warnings_alone() -> None:
    code = (
        "import logging, sys, warnings\n"
        "before = (list(logging.getLogger().handlers), list(warnings.filters))\n"
        "from vsparse import second_opinion\n"
        "before = (list(logging.getLogger().handlers), list(warnings.filters))\n"
        "second_opinion.self_test()\n"
        "assert before == (list(logging.getLogger().handlers), list(warnings.filters))\n"
        "assert 'numpy.lib.arraysetops' not in sys.modules\n"
        "assert sys.getrecursionlimit() == 1000\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_loss_fusion_works() -> None:
    with second_opinion.quietly() as lirpa:
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
        options = {"relu": "adaptive", "loss_fusion": True}
        bounded = lirpa.BoundedModule(lirpa.CrossEntropyWrapper(net), (x[:1], y[:1]), bound_opts=options, device="cpu")
        ball = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float("inf"), eps=0.1))
        _, upper = bounded.compute_bounds(x=(ball, y), IBP=False, method="CROWN-IBP", bound_lower=False, bound_upper=True)
        # The fused output is the sum of exponentials of z_j - z_label, less its largest exponent, which the exponential's node keeps.
        largest = next(node for node in bounded.modules() if type(node).__name__ == "BoundExp").max_input
        worst = (upper.log() + largest).flatten()
    points = x[:, None] + 0.2 * torch.rand(2, 300, 1, 2, 2) - 0.1
    losses = nn.functional.cross_entropy(net(points.flatten(0, 1)), y.repeat_interleave(300), reduction="none").view(2, 300)
    assert (losses.amax(dim=1) <= worst + 1e-4).all()


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="CROWN-IBP"):
        second_opinion.crown_lower(nn.Linear(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, 1), "guess")


def test_a_network_it_cannot_bound_is_an_input_error() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(x)[1]

    with pytest.raises(second_opinion.NoOpinionError, match=r"auto_LiRPA \S+ cannot bound this network by CROWN"):
        second_opinion.crown_lower(Sorted(), torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.ones(1, 1, 2))


def test_where_it_is_absent_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise second_opinion.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(second_opinion.metadata, "version", absent)
    monkeypatch.setattr(second_opinion.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "auto_LiRPA", raising=False)
    assert not second_opinion.is_available()
    with pytest.raises(UnavailableError, match=r"pip install --no-deps auto_LiRPA==0\.3"):
        second_opinion.load()


def test_a_module_that_cannot_be_imported_is_absent_whatever_its_metadata_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion.metadata, "version", lambda _: "0.3")
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    assert second_opinion.absence() == second_opinion.NOT_INSTALLED
    assert not second_opinion.is_available()
    with pytest.raises(UnavailableError, match=r"not installed \(pip install"):
        second_opinion.version()


def test_a_newer_version_is_imported_without_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = object()
    monkeypatch.setattr(second_opinion.metadata, "version", lambda _: "0.7.1")
    monkeypatch.setattr(second_opinion, "absence", lambda: "")
    monkeypatch.setattr(second_opinion, "_supply_torch_names", lambda: pytest.fail("the shim is for 0.3"))
    monkeypatch.setattr(second_opinion.importlib, "import_module", lambda _: newer)
    monkeypatch.delitem(sys.modules, "auto_LiRPA", raising=False)
    assert second_opinion.load() is newer


def test_a_version_that_fails_to_import_says_which_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise AttributeError("torch has no attribute of that name")

    monkeypatch.setattr(second_opinion.metadata, "version", lambda _: "0.9")
    monkeypatch.setattr(second_opinion, "absence", lambda: "")
    monkeypatch.setattr(second_opinion.importlib, "import_module", broken)
    monkeypatch.delitem(sys.modules, "auto_LiRPA", raising=False)
    with pytest.raises(UnavailableError, match=r"auto_LiRPA 0\.9 cannot be imported.*auto_LiRPA==0\.3"):
        second_opinion.load()


def test_quietly_holds_output_back_and_gives_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as seen, second_opinion.quietly():
        print("chatter")
        warnings.warn("chatter", stacklevel=1)
        logging.getLogger("auto_LiRPA").warning("chatter")
    assert capsys.readouterr().out == ""
    assert not seen
    print("speech")
    assert capsys.readouterr().out == "speech\n"


def fails(*_: object, **__: object) -> None:
    raise TypeError("BoundedModule got an unexpected argument")


def test_the_fused_self_test_computes_what_is_right_by_hand() -> None:
    assert second_opinion.fused_self_test() == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-5)


def test_a_fault_of_the_tool_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    box = torch.zeros(1, 2), torch.ones(1, 2)
    monkeypatch.setattr(second_opinion, "_bound", fails)
    with pytest.raises(second_opinion.NoOpinionError, match=r"fails on a network of two layers.*known version") as caught:
        second_opinion.crown_lower(nn.Linear(2, 2), *box, torch.eye(2)[None])
    assert "this network" not in str(caught.value)


def test_what_crown_ibp_training_needs_is_tried_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion.FusedLoss, "upper", fails)
    with pytest.raises(UnavailableError, match="cannot fuse a loss"):
        second_opinion.fused_self_test()
    with pytest.raises(second_opinion.NoOpinionError, match="cannot fuse a loss"):
        second_opinion.fused_loss(nn.Linear(2, 2), (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))


NET = """
from torch import nn

def make(input_shape, classes, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU6(), nn.Linear(12, 12), nn.LeakyReLU(0.1), nn.Linear(12, classes))
"""


# A build in seconds, which nothing but soundness can fail.
FEW = (
    "train.epochs=2",
    "property.samples=20",
    "property.curve_samples=5",
    "property.curve=['0.01']",
    "property.epsilon='0.01'",
    "verify.cross_check=2",
    "verify.attack_restarts=1",
    "verify.attack_steps=5",
    "profile.runs=20",
    "profile.seconds=0.05",
    *(
        f"gates.{name}=0"
        for name in ("certified_accuracy", "dense_certified_accuracy", "certified_loss", "weights_removed", "latency_ratio")
    ),
)


def test_a_build_says_early_that_there_will_be_none_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsparse.pipeline.build import build

    (tmp_path / "second_opinion_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    events = []
    result = build(
        "digits",
        settings=["network.architecture=second_opinion_net:make", "train.baseline=false", *FEW],
        out=tmp_path / "artifact",
        reporter=events.append,
    )
    words = "auto_LiRPA relaxes Clip, LeakyRelu by other lines"
    early = next(i for i, event in enumerate(events) if words in event.text)
    assert early < next(i for i, event in enumerate(events) if event.kind == "start")
    gate = next(gate for gate in result.gates if "auto_LiRPA" in gate.name)
    assert gate.passed
    assert words in gate.got
    certificate = json.loads((result.directory / "certificate" / "certificate.json").read_text())
    assert certificate["void"] == ""
    assert words in certificate["note"]
    assert words in (result.directory / "report.html").read_text()
