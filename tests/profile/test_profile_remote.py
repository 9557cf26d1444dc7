"""profile over ssh, with an ssh and an scp of our own on the PATH that act on a folder of this machine."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vsparse.artifact.device_folder import DeviceFolder, DeviceFolderModel, DeviceTarget, DeviceTiming
from vsparse.artifact.document import write_document
from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.files import sha256_file
from vsparse.stages.profile import profile_remote, read_results

SSH = """
import os, subprocess, sys
args = sys.argv[1:]
while args[0] == "-o":
    args = args[2:]
host, command = args[0], " ".join(args[1:])
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("ssh %s %s\\n" % (host, command))
if os.environ.get("FAKE_DOWN"):
    sys.stderr.write("ssh: connect to host %s port 22: Connection refused\\n" % host)
    sys.exit(255)
done = subprocess.run(["/bin/sh", "-c", command], cwd=os.environ["FAKE_HOME"])
sys.exit(done.returncode)
"""
SCP = """
import os, shutil, sys
args = [a for a in sys.argv[1:] if a not in ("-q", "-r")]
while args[0] == "-o":
    args = args[2:]
there = lambda p: os.path.join(os.environ["FAKE_HOME"], p.partition(":")[2]) if ":" in p else p
source, target = there(args[0]), there(args[1])
if not os.path.exists(source):
    sys.stderr.write("scp: %s: No such file or directory\\n" % args[0])
    sys.exit(1)
shutil.copytree(source, target) if os.path.isdir(source) else shutil.copy(source, target)
"""
SCRIPT = """
import hashlib, json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
manifest = json.load(open(os.path.join(here, "manifest.json")))
if manifest["recipe"] in ("absent", "damaged"):
    sys.stderr.write("run_on_device.py: trtexec is not there\\n")
    sys.exit({"absent": 3, "damaged": 2}[manifest["recipe"]])
if manifest["recipe"] == "build fails":
    sys.stderr.write("run_on_device.py: trtexec could not build\\n")
    sys.exit(1)
failed = manifest["recipe"] == "gate"
gates = [{"name": "arithmetic", "passed": not failed, "detail": "layer c1 uses Winograd" if failed else "fine"}]
digest = hashlib.sha256(open(os.path.join(here, "manifest.json"), "rb").read()).hexdigest()
if manifest["recipe"] == "other":
    digest = "0" * 64
models = [{"file": m["file"], "role": "packed", "onnx_sha256": m["sha256"], "gates": gates,
           "latency": {"samples_ms": [3.0, 1.0, 2.0], "latency_ms_p50": 99.0}} for m in manifest["models"]]
results = {"schema_version": 1, "kind": "vsparse-device-results", "target": "t", "device": {"model": "pretended"}, "models": models,
           "gates": [], "manifest_sha256": digest, "passed": not failed, "runtime": {"name": "tensorrt", "version": "10.3.0"}}
text = "{" if manifest["recipe"] == "garbage" else json.dumps(results)
open(os.path.join(here, "results.json"), "w").write(text)
sys.exit(1 if failed else 0)
"""


class Remote:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.log, self.bin = tmp_path / "home", tmp_path / "log", tmp_path / "bin"
        self.folder, self.results = tmp_path / "artifact" / "device", tmp_path / "results.json"
        self.monkeypatch = monkeypatch
        for path in (self.home, self.bin, self.folder):
            path.mkdir(parents=True)
        for name, source in (("ssh", SSH), ("scp", SCP)):
            (self.bin / name).write_text(f"#!{sys.executable} -I\n{source}")
            (self.bin / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setenv("FAKE_HOME", str(self.home))
        monkeypatch.setenv("FAKE_LOG", str(self.log))
        self.act("good")

    def act(self, what: str) -> None:
        target = DeviceTarget(name="t", kind="jetson", module="", runtime="tensorrt", soc="", modules=(), power_rails=())
        digest = "a" * 64
        model = DeviceFolderModel(
            role="packed", file="model.fp32.onnx", sha256=digest, content_sha256=digest, input="x", input_shape=(4,), output="y"
        )
        manifest = DeviceFolder(
            recipe=what,  # what the pretended script does
            contract={"name": "fp32"},
            certificate_sha256=digest,
            script_sha256=digest,
            target=target,
            timing=DeviceTiming(),
            models=(model,),
        )
        write_document(self.folder / "manifest.json", manifest)
        (self.folder / "run_on_device.py").write_text(SCRIPT)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    return Remote(tmp_path, monkeypatch)


def test_results_come_back_and_the_device_is_left_clean(remote: Remote) -> None:
    for directory in (remote.folder, remote.folder.parent):  # a device folder, or the artifact that holds one
        results = profile_remote("robot@board.local", directory, remote.results)
        assert results.passed is True
        assert json.loads(remote.results.read_text()) == results.model_dump(mode="json")
        assert results.manifest_sha256 == sha256_file(remote.folder / "manifest.json")
        assert list(remote.home.iterdir()) == []
    found = results.latencies()
    assert found["packed"].p50 == 2.0  # from the samples, not from what the file claims
    assert found["packed"].machine == {"model": "pretended"}
    assert profile_remote("board", remote.folder).target == "t"


def test_a_gate_that_failed_there_fails_here_and_the_measurement_stays(remote: Remote) -> None:
    remote.act("gate")
    with pytest.raises(GateError, match="layer c1 uses Winograd"):
        profile_remote("board", remote.folder, remote.results)
    assert read_results(remote.results).passed is False


def test_unreachable_and_absent_are_unavailable(remote: Remote) -> None:
    remote.act("absent")
    with pytest.raises(UnavailableError, match="trtexec is not there"):
        profile_remote("board", remote.folder, remote.results)
    remote.monkeypatch.setenv("FAKE_DOWN", "1")
    with pytest.raises(UnavailableError, match="Connection refused"):
        profile_remote("board", remote.folder, remote.results)
    remote.monkeypatch.setenv("PATH", str(remote.home))
    with pytest.raises(UnavailableError, match="ssh is not installed here"):
        profile_remote("board", remote.folder, remote.results)
    assert not remote.results.exists()


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        ("damaged", InputError, "trtexec is not there"),
        ("build fails", GateError, "could not build"),
        ("garbage", InputError, "not valid JSON"),
        ("other", InputError, "about other models"),
    ],
)
def test_everything_else_that_comes_back_is_a_sentence(remote: Remote, act: str, error: type[Exception], words: str) -> None:
    remote.act(act)
    with pytest.raises(error, match=words):
        profile_remote("board", remote.folder, remote.results)
    assert not remote.results.exists()


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "a b", "user@", "user@-x", "host;reboot", "$(x)", "a\nb"])
def test_a_host_is_never_an_option_or_a_command(remote: Remote, host: str) -> None:
    with pytest.raises(InputError, match="is not user@address"):
        profile_remote(host, remote.folder, remote.results)
    assert not remote.log.exists()


def test_a_folder_that_is_no_device_folder_is_refused(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no device folder"):
        profile_remote("board", tmp_path, remote.results)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"schema_version": 2},
        {"models": [{}]},
        {"models": "x"},
        {"gates": [{"name": 1}]},
        {"gates": [{"name": "a", "detail": "b", "passed": "yes"}]},
        {"passed": 1},
    ],
)
def test_results_of_another_form_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"schema_version": 1, "kind": "vsparse-device-results", "target": "t", "device": {}, "models": [], "gates": []}
    good |= {"manifest_sha256": "a", "passed": True}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(good))
    assert read_results(path).model_dump(mode="json") == good
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match="not what run_on_device"):
        read_results(path)
