"""What this machine can do: found out rightly, whatever goes wrong."""

import sys

import pytest

from simulated_device import simulated_device
from vsparse import environment
from vsparse.compute_device import reading_back
from vsparse.environment import Finding, examine, is_ready

NAMES = [
    "python",
    "torch",
    "cuda",
    "onnx",
    "onnxruntime",
    "numpy",
    "pydantic",
    "scikit-learn",
    "scipy",
    "pillow",
    "safetensors",
    "jinja2",
    "tomli-w",
    "int8 kernels",
    "auto_LiRPA",
    "c compiler",
    "arm-none-eabi-gcc",
    "qemu-system-arm",
    "frama-c",
    "tensorrt",
    "trtexec",
    "ssh",
    "cores",
    "memory",
    "disk",
]


def test_everything_is_examined_in_order_and_what_is_needed_works() -> None:
    findings = examine()
    assert [finding.name for finding in findings] == NAMES
    by_name = {finding.name: finding for finding in findings}
    for name in environment.REQUIRED:
        assert by_name[name].status == "ok", by_name[name]
    assert is_ready(findings)
    assert by_name["onnxruntime"].version
    for finding in findings:
        assert finding.status == "ok" or (finding.detail and finding.way_out)
        assert set(finding.as_dict()) == {"name", "status", "version", "detail", "way_out", "required"}


def test_tools_of_microcontrollers_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("arm-none-eabi-gcc", "qemu-system-arm", "frama-c")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    found = {name: environment._try(name, probe, way_out) for name, probe, way_out in environment.PROBES if name in names}
    assert [finding.status for finding in found.values()] == ["absent"] * 3
    for name in names:
        assert found[name].detail == f"{name} is not on the path"
        assert "needed" in found[name].way_out
    assert is_ready([Finding(name, "ok") for name in environment.REQUIRED] + list(found.values()))


@pytest.mark.parametrize("exact", [True, False])
def test_whether_integer_kernels_are_exact_is_said_with_what_it_means(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsparse.reading.integer_kernels.adds_bytes_exactly", lambda: exact)
    probe, way_out = next((probe, way_out) for name, probe, way_out in environment.PROBES if name == "int8 kernels")
    finding = environment._try("int8 kernels", probe, way_out)
    assert finding.status == ("ok" if exact else "absent")
    assert ("certified and audited here under int8-exact" if exact else "int8-exact is refused") in finding.detail
    assert exact or "VNNI" in finding.way_out
    assert is_ready([Finding(name, "ok") for name in environment.REQUIRED] + [finding])  # no build needs it


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("wrong number"), "broken"),
        (ModuleNotFoundError("No module named 'x'"), "absent"),
        (ImportError("libx.so: cannot open"), "broken"),
        (OSError("disk"), "broken"),
        (KeyError(), "broken"),
    ],
)
def test_whatever_goes_wrong_is_the_finding(error: Exception, status: str) -> None:
    def fails() -> tuple[str, str]:
        raise error

    finding = environment._try("torch", fails, "do this")
    assert (finding.status, finding.way_out) == (status, "do this")
    assert finding.detail


def test_a_runtime_that_computes_wrong_numbers_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class Wrong:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, *_: object) -> list[object]:
            import numpy as np

            return [np.array([0.0, 1.0, 2.9999998], np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    finding = environment._try("onnxruntime", environment._onnxruntime, "reinstall")
    assert finding.status == "broken"
    assert "not [0, 1, 3]" in finding.detail


def test_without_compiler_and_ssh_they_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert environment._try("c compiler", environment._c_compiler, "x").status == "absent"
    assert environment._try("ssh", environment._ssh, "x").status == "absent"
    assert environment._try("trtexec", environment._trtexec, "x").status == "absent"


def test_tensorrt_without_its_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert environment._try("tensorrt", environment._tensorrt, "x").status == "absent"


def test_one_needed_part_missing_means_not_ready() -> None:
    good = [Finding(name, "ok") for name in NAMES]
    assert is_ready(good)
    assert not is_ready([Finding("onnx", "absent"), *good[3:]])
    assert is_ready([Finding("tensorrt", "absent"), *[f for f in good if f.name != "tensorrt"]])


def test_devices_are_named_where_there_are_some_and_their_absence_is_no_fault() -> None:
    finding = environment._try("cuda", environment._cuda, "a way out")
    assert finding.status in ("ok", "absent")
    assert finding.detail
    with simulated_device(count=2), reading_back("the doctor looks"):
        _, found = environment._cuda()
    assert found == "cuda:0: simulated, 8 GiB; cuda:1: simulated, 8 GiB"
