"""profile over ssh, by a real sshd on loopback: options are honoured, and after each fault nothing is left on the device."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import NEEDED, Loopback, processes_here

from vsparse.artifact.device_folder import DeviceFolder
from vsparse.artifact.document import read_document, write_document
from vsparse.errors import GateError, InputError, UnavailableError, VsparseError
from vsparse.files import sha256_bytes, sha256_file
from vsparse.stages.export.bundle import agent_script
from vsparse.stages.profile import AgentOptions, connection, profile_remote, read_results, remote
from vsparse.stages.profile.connection import ssh_command

pytestmark = NEEDED
SHORT = AgentOptions(runs=20, seconds=0.05, warmup=3)
LONG = AgentOptions(runs=20, seconds=60, warmup=3)
EMPTY: tuple[list[Any], list[Any]] = ([], [])


def test_results_come_back_options_are_honoured_and_nothing_stays(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    # What a shell says by itself is no message.
    loopback.session(before="echo welcome; echo vsparse '{}'; echo beware >&2")
    said: list[str] = []
    options = AgentOptions(runs=40, seconds=0.06, warmup=7, threads=2, batch=3)
    found = profile_remote("device", folder.parent, tmp_path / "r.json", options=options, said=said.append)
    assert loopback.left() == EMPTY
    assert found == read_results(tmp_path / "r.json")
    timing = json.loads((tmp_path / "r.json").read_text())["timing"]
    assert {key: timing[key] for key in ("runs", "seconds", "warmup_runs", "threads", "batch")} == {
        "runs": 40,
        "seconds": 0.06,
        "warmup_runs": 7,
        "threads": 2,
        "batch": 3,
    }
    assert found.manifest_sha256 == sha256_file(folder / "manifest.json")
    assert [(one.role, one.runtime and one.runtime.name) for one in found.measurements] == [
        ("packed", "onnxruntime"),
        ("dense", "onnxruntime"),
        ("sequential", "c"),
    ]
    for one in found.measurements:
        assert one.latency is not None
        assert one.latency.runs_timed is not None
        assert one.latency.runs_timed >= 40
        assert (one.settings["batch"], one.settings["threads_intra_op"]) == (3, 2)
        told: Any = one.model_extra
        assert told["warmup"]["runs"] >= 7
        assert sum(told["latency"]["all_runs_ns"]["counts"] if "latency" in told else [one.latency.runs_timed]) == one.latency.runs_timed
    assert found.measurements[2].source_sha256 == sha256_file(folder / "model.c")
    order = ["packed (onnxruntime)", "dense (onnxruntime)", "sequential (c)"]
    assert all(list(one.settings["alternating_blocks_of"]) == order for one in found.measurements)
    assert found.passed
    assert [gate.passed for gate in found.every_gate] == [True, None, True, True]
    assert any("timing in turns" in text for text in said)


def test_one_runtime_alone_is_measured_and_not_kept(loopback: Loopback, folder: Path) -> None:
    measured: list[Any] = []
    found = profile_remote("device", folder, measured=measured.append, options=AgentOptions(runs=20, seconds=0.05, runtime="c"))
    assert [one.role for one in found.measurements] == ["sequential"]
    assert measured == []
    with pytest.raises(UnavailableError, match="trtexec is not in /usr/src/tensorrt/bin"):
        profile_remote("device", folder, options=AgentOptions(runtime="tensorrt"))
    assert loopback.left() == EMPTY


def test_a_device_without_a_compiler_is_sent_what_was_compiled_here(loopback: Loopback, folder: Path) -> None:
    loopback.session(path=str(loopback.bin))
    found = profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.05, runtime="c"))
    assert found.measurements[0].settings["compiled"] == "elsewhere, and copied here"
    assert [gate.passed for gate in found.measurements[0].gates] == [True]
    assert loopback.left() == EMPTY


def test_without_any_compiler_the_c_is_left_out_with_its_reason(loopback: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.session(path=str(loopback.bin))
    monkeypatch.setattr(remote, "delivered_libraries", lambda *given: [])
    found = profile_remote("device", folder, options=SHORT)
    assert [one.role for one in found.measurements] == ["packed", "dense"]
    assert "no C compiler" in json.dumps(found.model_dump(mode="json")["skipped"])


def test_the_folder_is_kept_only_where_that_is_asked_for(loopback: Loopback, folder: Path) -> None:
    said: list[str] = []
    profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.05, keep=True), warned=said.append)
    processes, names = loopback.left(1)
    assert processes == []
    assert [re.sub("[a-z0-9_]{8}$", "", name) for name in names] == ["vsparse-kept-"]
    assert {"results.json", "agent.py", "manifest.json"} <= {path.name for path in (loopback.home / names[0]).iterdir()}
    assert any(names[0] in text for text in said)


# Faults before anything runs ------------------------------------------------------------------------------------------

# A Python that claims another version, or a device without room.
OLD = 'exec {python} -c "import sys; sys.version_info = (3, 6, 9); exec(sys.argv[1])" "$3"'
FULL = (
    'exec {python} -c "import os, sys; of = os.statvfs; '
    'os.statvfs = lambda path: os.statvfs_result(0 if i == 4 else v for i, v in enumerate(of(path))); exec(sys.argv[1])" "$3"'
)


def python_there(loopback: Loopback, text: str) -> None:
    (loopback.bin / "python3").write_text("#!/bin/sh\n" + text.format(python=sys.executable) + "\n")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda there: (there.bin / "python3").unlink() or there.session(path=str(there.bin)), "it has no python3; install it there"),
        (lambda there: python_there(there, OLD), "its python3 is older than 3.8; install it there"),
        (
            lambda there: python_there(there, FULL),
            "no space is left in .*: 0 MB are free and .* MB are needed; free some, or give --remote-dir",
        ),
        (
            lambda there: (there.folder / "authorized_keys").write_text(""),
            "it refuses the key that ssh offers; install yours there: ssh-copy-id",
        ),
        (lambda there: there.session(before="exit 9"), "ssh ended with exit code 9; try: ssh .*device python3 --version"),
        (
            lambda there: there.server.terminate() or there.server.wait(),
            "no sshd answers .connection refused.; start one there, or give the port",
        ),
    ],
)
def test_causes_are_named_with_a_way_out(loopback: Loopback, folder: Path, fault: Callable[[Loopback], object], words: str) -> None:
    fault(loopback)
    with pytest.raises(UnavailableError, match=words) as refused:
        profile_remote("device", folder, options=SHORT)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 3
    assert loopback.left() == EMPTY


def test_a_folder_that_cannot_be_written_is_named_and_another_one_works(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    for there, words in (("/proc", "/proc cannot be written .*; give --remote-dir"), ("/absent", "/absent cannot be opened")):
        with pytest.raises(UnavailableError, match=words):
            profile_remote("device", folder, options=AgentOptions(directory=there))
    (tmp_path / "room").mkdir()
    profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.05, runtime="c", directory=str(tmp_path / "room")))
    assert list((tmp_path / "room").iterdir()) == []
    assert loopback.left() == EMPTY


def test_another_device_and_a_missing_runtime_are_named(loopback: Loopback, folder: Path) -> None:
    manifest = read_document(DeviceFolder, folder / "manifest.json")
    pi = manifest.target.model_copy(update={"name": "raspberry-pi-5", "kind": "raspberry-pi", "soc": "brcm,bcm2712"})
    write_document(folder / "manifest.json", manifest.model_copy(update={"target": pi}))
    with pytest.raises(UnavailableError, match=r"this is not the target raspberry-pi-5 .*brcm,bcm2712; run it there, or give --any-device"):
        profile_remote("device", folder, options=SHORT)
    with pytest.raises(GateError, match=r"a gate failed on the device .device: the device tree says nothing, not brcm,bcm2712"):
        profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.05, any_device=True))
    write_document(folder / "manifest.json", manifest)
    base = getattr(sys, "_base_executable", sys.executable)
    if subprocess.run([base, "-I", "-c", "import onnxruntime"], capture_output=True, check=False).returncode == 0:
        return  # the tests are in no virtual environment, and there is no Python without its packages
    (loopback.bin / "python3").write_text(f'#!/bin/sh\nexec {base} "$@"\n')
    with pytest.raises(UnavailableError, match=r"does not import onnxruntime .*; `pip install onnxruntime`, then run again"):
        profile_remote("device", folder, options=SHORT)
    assert loopback.left() == EMPTY


def test_ctrl_c_before_files_are_sent_leaves_nothing(loopback: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.session(path=str(loopback.bin))

    def interrupted(*given: Any) -> list[Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "delivered_libraries", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        profile_remote("device", folder, options=SHORT)
    assert loopback.left(5) == EMPTY
    assert time.monotonic() - began < 20


def test_a_library_for_another_processor_is_a_sentence(
    loopback: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.session(path=str(loopback.bin))

    def other(*given: Any) -> list[Path]:
        (tmp_path / "prebuilt-sequential.so").write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x03\x00\xb7\x00" + b"\0" * 100)
        return [tmp_path / "prebuilt-sequential.so"]

    monkeypatch.setattr(remote, "delivered_libraries", other)
    with pytest.raises(GateError, match=r"run: model.c does not run: OSError"):
        profile_remote("device", folder, options=AgentOptions(runtime="c", runs=20, seconds=0.05))
    assert loopback.left() == EMPTY


# Faults while it runs -------------------------------------------------------------------------------------------------


class Running:
    """A long measurement in a thread; it is under way once something of it came back."""

    def __init__(self, loopback: Loopback, folder: Path, partial: Path, options: AgentOptions = LONG) -> None:
        self.error: VsparseError | None = None
        self.loopback, self.partial = loopback, partial
        self.thread = threading.Thread(target=self.run, args=(folder, options), daemon=True)
        self.thread.start()

    def run(self, folder: Path, options: AgentOptions) -> None:
        try:
            profile_remote("device", folder, options=options, partial=self.partial)
        except VsparseError as error:
            self.error = error

    def under_way(self) -> Running:
        """Waits until latencies were measured there, and a little for them to come back."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for path in self.loopback.home.glob("vsparse-run-*/results.partial.json"):
                if path.read_text().count('"latency_ms_p50"') == 3:
                    time.sleep(1.5)
                    return self
            time.sleep(0.05)
        raise AssertionError(f"nothing was measured: {self.error}, {self.loopback.processes()}")

    def ended(self, words: str, seconds: float = 30) -> None:
        """Waits for the sentence, and for the device to be clean; what was measured is there."""
        self.thread.join(seconds)
        assert not self.thread.is_alive()
        assert self.loopback.left() == EMPTY
        assert self.error is not None
        assert re.search(words, str(self.error)), str(self.error)
        assert self.error.exit_code == 3
        assert "\n" not in str(self.error)
        assert str(self.partial) in str(self.error)
        kept = read_results(self.partial)
        assert not kept.complete
        assert [one.latency is not None for one in kept.measurements] == [True] * 3


@pytest.fixture
def running(loopback: Loopback, folder: Path, tmp_path: Path) -> Running:
    return Running(loopback, folder, tmp_path / "partial.json").under_way()


def test_a_connection_lost_here_ends_what_runs_there(running: Running) -> None:
    for number in processes_here(str(running.loopback.folder / "ssh_config")):
        os.kill(number, signal.SIGKILL)
    running.ended("the connection was lost .*the device ends the agent and removes its folder by itself.*run it again")


def test_a_connection_lost_there_ends_what_runs_there(running: Running) -> None:
    for number in processes_here("", running.loopback.server.pid):
        os.kill(number, signal.SIGKILL)
    running.ended("the connection was lost")


def test_an_agent_that_is_killed_is_named_and_what_it_measured_kept(running: Running) -> None:
    (number,) = [number for number, text in running.loopback.processes() if "--watched" in text]
    os.kill(number, signal.SIGKILL)
    running.ended("the agent was killed on the device .signal 9., as the kernel does where memory is short.*end other programs there")


def test_a_supervisor_that_is_killed_takes_all_with_it(running: Running) -> None:
    (number,) = [number for number, text in running.loopback.processes() if "supervise" in text and "sh -c" not in text]
    os.kill(number, signal.SIGKILL)
    running.ended("the connection was lost")


def test_a_form_that_is_killed_drops_out_and_the_rest_is_measured(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    running = Running(loopback, folder, tmp_path / "partial.json", AgentOptions(runs=20, seconds=2, warmup=3))
    running.under_way()
    workers = sorted(number for number, text in loopback.processes() if "--worker" in text)
    os.kill(workers[2], signal.SIGKILL)
    running.thread.join(60)
    assert isinstance(running.error, GateError)
    assert "model.c was killed, as the kernel does where memory is short" in str(running.error)
    assert loopback.left() == EMPTY


def test_at_the_limit_of_time_everything_ends(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    running = Running(loopback, folder, tmp_path / "partial.json", AgentOptions(runs=20, seconds=60, warmup=3, timeout=8))
    running.under_way().ended("had not finished after 8 s: the agent was ended there, and its folder removed.*give --timeout more")


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that waits for nothing long."""
    text = connection.SUPERVISOR.read_text().replace("SILENCE_S = 20", "SILENCE_S = 3").replace("LOCKED_S = 10", "LOCKED_S = 1")
    (tmp_path / "supervisor.py").write_text(text)
    monkeypatch.setattr(connection, "SUPERVISOR", tmp_path / "supervisor.py")


@pytest.mark.usefixtures("hasty")
def test_silence_of_a_connection_that_stands_ends_it(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    running = Running(loopback, folder, tmp_path / "partial.json").under_way()
    numbers = processes_here(str(loopback.folder / "ssh_config"))
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    assert loopback.left() == EMPTY
    for number in numbers:
        os.kill(number, signal.SIGCONT)
    running.ended("heard nothing from here any more")


@pytest.mark.usefixtures("hasty")
def test_no_run_measures_beside_another_and_what_a_power_cut_left_is_removed(loopback: Loopback, folder: Path, tmp_path: Path) -> None:
    stale = loopback.home / "vsparse-run-abcd1234"
    stale.mkdir()
    (stale / "model.onnx").write_text("of another day")
    kept = loopback.home / "vsparse-running-notes"  # a folder of the user's own
    kept.mkdir()
    running = Running(loopback, folder, tmp_path / "partial.json").under_way()
    assert not stale.exists()
    with pytest.raises(UnavailableError, match=r"another run is measuring there, in .*; wait until it has ended"):
        profile_remote("device", folder, options=SHORT)
    (number,) = [number for number, text in loopback.processes() if "--watched" in text]
    os.kill(number, signal.SIGKILL)
    running.thread.join(30)
    assert loopback.left(5) == ([], [kept.name])


def test_by_hand_two_agents_do_not_measure_in_one_folder_and_ctrl_c_ends_all(folder: Path) -> None:
    command = [sys.executable, str(folder / "agent.py"), "--seconds", "60", "--warmup", "3"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    partial = folder / "results.partial.json"
    while time.monotonic() < deadline and not (partial.exists() and partial.read_text().count('"latency_ms_p50"') == 3):
        time.sleep(0.05)
    second = subprocess.run([*command[:2], "--runtime", "c"], capture_output=True, text=True, check=False)
    assert second.returncode == 3
    assert f"another agent is measuring in {folder}; wait until it has ended" in second.stderr
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    assert first.stderr is not None
    assert "results.partial.json holds what was measured" in first.stderr.read()
    assert len(processes_here(str(folder / "agent.py"))) == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert [one.latency is not None for one in read_results(partial).measurements] == [True] * 3


# What comes back ------------------------------------------------------------------------------------------------------


def returning(change: str) -> str:
    """An agent that measures, and then writes something else."""
    end = '\nif __name__ == "__main__":\n    sys.exit(main(sys.argv[1:]))\n'
    text = agent_script()
    assert text.endswith(end)
    more = f"""
if __name__ == "__main__":
    code = main(sys.argv[1:])
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results.json")
    if os.path.exists(path):
        found = json.load(open(path))
        {change}
        open(path, "w").write(found if isinstance(found, str) else json.dumps(found))
    sys.exit(code)
"""
    return text.removesuffix(end) + more


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('found["manifest_sha256"] = "0" * 64', "are about other models than those that were sent; run it again"),
        ('found = "[" * 100000', "are not what agent.py writes"),
    ],
)
def test_other_results_are_refused_and_harm_nothing(
    loopback: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    monkeypatch.setattr(remote, "agent_script", lambda: returning(change))
    before = {path.name: sha256_bytes(path.read_bytes()) for path in folder.iterdir()}
    measured: list[Any] = []
    options = AgentOptions(runs=20, seconds=0.01, warmup=1)
    with pytest.raises(GateError, match=words) as refused:
        profile_remote("device", folder, tmp_path / "r.json", options=options, measured=measured.append)
    assert "\n" not in str(refused.value)
    assert measured == []
    assert not (tmp_path / "r.json").exists()
    assert {path.name: sha256_bytes(path.read_bytes()) for path in folder.iterdir()} == before
    assert loopback.left() == EMPTY


def test_results_that_were_changed_are_refused(loopback: Loopback, folder: Path) -> None:
    """As they come back: the same results, each time changed in one place."""
    good = profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.01, warmup=1)).model_dump(mode="json")

    def back(content: Any) -> Any:
        text = content if isinstance(content, str) else json.dumps(content)
        return remote.results_of("device", text.encode(), folder / "manifest.json")

    assert back(good).model_dump(mode="json") == good
    model, further = good["models"][0], good["further"][0]
    for changed, words in (
        (good | {"models": good["models"][::-1]}, "are about other models than those that were sent"),
        (good | {"models": good["models"][:1]}, "are about other models than those that were sent"),
        (good | {"further": [further | {"source_sha256": "0" * 64}]}, "are about other models than those that were sent"),
        (good | {"further": [further | {"role": "packed"}]}, "are about other models than those that were sent"),
        (good | {"further": [further | {"gates": [further["gates"][0] | {"passed": False}]}]}, "passed: it is true, and audit failed"),
        (
            good
            | {
                "further": [
                    further
                    | {"gates": [further["gates"][0] | {"detail": "the logits of 9 probe(s) lie inside their certified enclosures"}]}
                ]
            },
            "passed on 9 probe",
        ),
        (good | {"models": [model | {"latency": model["latency"] | {"samples_ms": ["<b>"]}}]}, "are not what agent.py writes"),
        (good | {"models": [model | {"latency": model["latency"] | {"runs": 1}}, *good["models"][1:]]}, "samples_ms has"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("\x00\x1b[2J", "are not what agent.py writes"),
    ):
        with pytest.raises(GateError, match=words) as refused:
            back(changed)
        assert str(refused.value).isprintable()


# What runs there without being written there -------------------------------------------------------------------------


def test_the_supervisor_is_standard_library_for_python_3_8() -> None:
    tree = ast.parse(connection.SUPERVISOR.read_text(), feature_version=(3, 8))
    top = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    top += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in top} <= set(sys.stdlib_module_names)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"removeprefix", "removesuffix", "file_digest", "pairwise", "UTC", "batched"}
    assert not {"'", "!", "\n"} & set(connection.STUB)  # any shell takes it in single quotes


# What is no device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "a b", "user@", "user@-x", "host;reboot", "$(x)", "a\nb"])
def test_a_host_is_never_an_option_or_a_command(folder: Path, host: str) -> None:
    with pytest.raises(InputError, match="is not user@address"):
        profile_remote(host, folder)


@pytest.mark.parametrize(
    ("host", "end"),
    [
        ("robot@board", ["robot@board"]),
        ("robot@board:2222", ["-p", "2222", "robot@board"]),
        ("[fe80::1]:22", ["-p", "22", "fe80::1"]),
        ("fe80::1", ["fe80::1"]),
        ("10.0.0.1:2200", ["-p", "2200", "10.0.0.1"]),
    ],
)
def test_a_port_may_stand_behind_the_address(monkeypatch: pytest.MonkeyPatch, host: str, end: list[str]) -> None:
    monkeypatch.delenv("VSPARSE_SSH", raising=False)
    assert ssh_command(host)[-len(end) :] == end
    assert ssh_command(host)[0] == "ssh"


def test_without_ssh_and_without_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds no device folder"):
        profile_remote("board", tmp_path)
    monkeypatch.delenv("VSPARSE_SSH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="ssh is not installed here"):
        profile_remote("board", folder)
    monkeypatch.setenv("VSPARSE_SSH", "'")
    with pytest.raises(InputError, match="VSPARSE_SSH is no command"):
        profile_remote("board", folder)
