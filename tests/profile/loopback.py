"""A device on 127.0.0.1: an sshd with keys of its own in a temporary folder, whose sessions live in a home of their own.

Every process of a session is marked in its environment, so that what is left of one can be counted.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if os.access(path, os.X_OK)), None)
NEEDED = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs sshd and ssh (Debian package openssh-server)")
MARK = "VSPARSE_LOOPBACK_DEVICE"

SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100
ForceCommand {folder}/session
"""
SSH_CONFIG = """
Host device
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    IdentityAgent none
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""
# What a login shell is: it may say something of its own first.
SESSION = """#!/bin/sh
export {mark}={folder} HOME={home} PATH={path}
unset PYTHONPATH VIRTUAL_ENV
cd "$HOME" || exit 1
{before}
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


def processes_here(wanted: str, parent: int | None = None) -> list[int]:
    """Returns the processes whose command line has `wanted`, or the children of one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace") if entry.name.isdigit() else ""
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if text and parent is not None else None
        except OSError:
            continue
        if text and wanted in text and above == parent:
            found.append(int(entry.name))
    return found


class Loopback:
    """A device named `device` for the ssh of VSPARSE_SSH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.bin = folder, folder / "home", folder / "bin"
        for path in (self.home, self.bin):
            path.mkdir()
        (self.bin / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (self.bin / "python3").chmod(0o755)
        folder.chmod(0o755)
        for name in ("host_key", "key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        values = {"port": self.port, "folder": folder, "user": getpass.getuser()}
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(**values))
        (folder / "ssh_config").write_text(SSH_CONFIG.format(**values))
        self.session()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges
        assert SSHD is not None
        command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        self.log = (folder / "log").open("wb")
        self.server = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self._await()

    def session(self, before: str = "", path: str | None = None) -> None:
        """Says what the next session does first, and what its PATH is; by default it has the Python of the tests."""
        values = {"mark": MARK, "folder": self.folder, "home": self.home, "path": path or f"{self.bin}:/usr/bin:/bin"}
        (self.folder / "session").write_text(SESSION.format(before=before, **values))
        (self.folder / "session").chmod(0o755)

    @property
    def command(self) -> str:
        """The value of VSPARSE_SSH that reaches it."""
        return f"ssh -F {self.folder / 'ssh_config'}"

    def processes(self) -> list[tuple[int, str]]:
        """Every process of a session that lives, with its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                marked = f"{MARK}={self.folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if marked and text:
                found.append((int(entry.name), text))
        return found

    def await_processes(self, part: str, seconds: float = 30) -> list[int]:
        """Waits until a process whose command line has `part` runs there, and returns the process ids."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := [number for number, text in self.processes() if part in text]:
                return found
            time.sleep(0.02)
        raise AssertionError(f"no process with {part} within {seconds} s: {self.processes()}")

    def left(self, seconds: float = 15) -> tuple[list[tuple[int, str]], list[str]]:
        """Returns the processes and the files that are left there, once none is or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.processes(), sorted(path.name for path in self.home.iterdir())
            if not any(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()
        self.log.close()
        for number, _ in self.processes():
            try:
                os.kill(number, 9)
            except OSError:
                continue

    def _await(self) -> None:
        for _ in range(200):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())
