"""The device of benchmarks/device/aarch64.sh: a 64-bit Arm under qemu's user emulation, reached by ssh on 127.0.0.1."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks/device"
SCRIPT, TARGET = FOLDER / "aarch64.sh", FOLDER / "aarch64.toml"
NAME = "aarch64"
OF_ITSELF = ("bash", "sleep")  # the first process of the device, and what it waits for


class Emulated:
    """Starts it, made first where that is needed; `ended` stops it unless it ran before. `refused` says why there is none."""

    def __init__(self) -> None:
        self.command, self.refused = "", f"{SCRIPT} is not there" if not SCRIPT.is_file() else ""
        self.ran_before = not self.refused and self.script("status").returncode == 0
        if not self.refused:
            done = self.script("start")
            # What it prints is for a shell: export VSPARSE_SSH="ssh -F FILE".
            self.command = shlex.split(done.stdout.partition("=")[2])[0] if done.returncode == 0 else ""
            self.refused = "" if self.command else done.stderr.strip()
        self.run = Path(self.command.removeprefix("ssh -F ")).parent

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        given = {"PYTHON": sys.executable, **os.environ}  # whose versions of numpy and onnxruntime it has
        return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=given)

    def ssh(self, command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*shlex.split(self.command), NAME, command], input=data, capture_output=True, check=False)

    def copy_there(self, *paths: Path) -> None:
        subprocess.run(["scp", "-q", *shlex.split(self.command)[1:], "-r", *map(str, paths), f"{NAME}:"], check=True)

    def packages(self) -> dict[str, str]:
        """The versions of what it is made of, as its own lists have them."""
        lines = (self.run.parent / "root/etc/vsparse/packages").read_text().splitlines()
        wanted = {name: version for name, version in (line.split() for line in lines) if name in ("python3", "gcc", "libc6")}
        return wanted | {one.split("-")[0]: one.split("-")[1] for one in (self.run.parent / "root/etc/vsparse/wheels").read_text().split()}

    def processes(self) -> list[str]:
        """The command lines of every process there but its own first ones, as the kernel of this machine tells them."""
        first = int((self.run / "holder").read_text().split()[0])
        inside, found = Path(f"/proc/{first}/ns/pid").readlink(), []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or (entry / "ns/pid").readlink() != inside:
                    continue
                name, text = (entry / "comm").read_text().strip(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text and name not in OF_ITSELF:
                found.append(text.replace(b"\0", b" ").decode("utf-8", "replace"))
        return found

    def files(self) -> list[str]:
        """What is in its home and in its /tmp, but for the caches of libraries."""
        first = int((self.run / "holder").read_text().split()[0])
        inside = Path(f"/proc/{first}/root{self.run.parent / 'root'}")
        return sorted(path.name for place in ("root", "tmp") for path in (inside / place).iterdir() if path.name != ".cache")

    def left(self, seconds: float = 30) -> tuple[list[str], list[str]]:
        """Returns the processes and files that are left there, once none is or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.processes(), self.files()
            if not any(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def ended(self) -> None:
        if not self.ran_before:
            self.script("stop")
