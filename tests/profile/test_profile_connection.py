"""A connection whose other end takes nothing more must not keep this process; commands that are advised do what they say."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from loopback import NEEDED, Loopback

from vsparse.errors import UnavailableError
from vsparse.stages.profile import AgentOptions, profile_remote
from vsparse.stages.profile.connection import Connection, by_hand

SHORT = AgentOptions(runs=20, seconds=0.05, warmup=3)


def test_a_device_that_stops_reading_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSPARSE_SSH", "sh -c 'sleep 60'")
    connection = Connection("device", {})
    connection.send_meanwhile(bytes(2**20))  # more than a pipe holds
    begin = time.monotonic()
    assert connection.receive(begin + 0.2) == {"event": "late"}
    connection.stop()
    connection.close()
    assert time.monotonic() - begin < 20
    assert connection.process.returncode is not None
    assert connection.reason().startswith("it stopped reading what it was sent")


@pytest.mark.parametrize(
    ("own", "host", "commands"),
    [
        ("", "robot@board:2222", ["ssh -p 2222 robot@board", "ssh-copy-id -p 2222 robot@board", "board", "another port than 2222"]),
        ("", "robot@board", ["ssh robot@board", "ssh-copy-id robot@board", "board", "the port: robot@board:PORT"]),
        ("", "robot@[fe80::1]:22", ["ssh -p 22 robot@fe80::1", "ssh-copy-id -p 22 robot@fe80::1", "fe80::1", "another port than 22"]),
        ("", "robot@fe80::1", ["ssh robot@fe80::1", "ssh-copy-id robot@fe80::1", "fe80::1", "the port: robot@[fe80::1]:PORT"]),
        ("ssh -F 'a b'", "board:2", ["ssh -F 'a b' -p 2 board", "ssh-copy-id -F 'a b' -p 2 board", "board", "another port than 2"]),
        ("ssh -v", "board", ["ssh board", "ssh-copy-id board", "board", "the port: board:PORT"]),
        ("sshpass -p secret ssh", "board", ["ssh board", "ssh-copy-id board", "board", "the port: board:PORT"]),
    ],
)
def test_advice_is_typed_as_each_command_takes_it(monkeypatch: pytest.MonkeyPatch, own: str, host: str, commands: list[str]) -> None:
    monkeypatch.setenv("VSPARSE_SSH", own)
    assert list(by_hand(host).values()) == commands


@NEEDED
def test_what_is_advised_about_a_port_is_what_ssh_takes(loopback: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the host as a user writes it, and its port behind it: the command that is printed reaches the same sshd."""
    config = loopback.folder / "ssh_config"
    config.write_text(re.sub(r"\n *Port .*", "", config.read_text()))
    (loopback.bin / "python3").unlink()
    loopback.session(path=str(loopback.bin), before="exit 9")
    with pytest.raises(UnavailableError, match=r"exit code 9; try: ssh -F .* -p \d+ device python3 --version") as refused:
        profile_remote(f"device:{loopback.port}", folder, options=SHORT)
    advised = str(refused.value).partition("try: ")[2]
    assert subprocess.run(advised, shell=True, capture_output=True, check=False).returncode == 9  # as a user would
    (loopback.folder / "authorized_keys").write_text("")
    with pytest.raises(UnavailableError, match=rf"install yours there: ssh-copy-id -F {config} -p {loopback.port} device"):
        profile_remote(f"device:{loopback.port}", folder, options=SHORT)
