"""profile over ssh on a device whose disk is full, or becomes full: the cause is named, nothing stays, what was measured is kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import NEEDED, Loopback
from test_profile_remote import EMPTY, LONG, SHORT, Running

from vsparse.errors import UnavailableError, VsparseError
from vsparse.stages.profile import AgentOptions, profile_remote, read_results, remote

pytestmark = NEEDED


# An agent that gives up, while a process that left its group, as one that hangs in the kernel, writes for two seconds more.
WRITER = """
import time
end, number = time.time() + 2, 0
while time.time() < end:
    number += 1
    try:
        open(f"file-{number}", "w").close()
    except OSError:
        pass
"""
AGENT = f"""
import os, subprocess, sys, time
here = os.path.dirname(os.path.abspath(__file__))
os.symlink("MINE", os.path.join(here, "link"))
options = dict(cwd=here, start_new_session=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.Popen([sys.executable, "-c", {WRITER!r}], **options)
while not os.path.exists(os.path.join(here, "file-1000")):
    time.sleep(0.01)
sys.exit("agent.py: nothing is measured today")
"""


def test_a_folder_that_something_still_writes_to_is_removed(
    loopback: Loopback, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("of the user")
    monkeypatch.setattr(remote, "agent_script", lambda: AGENT.replace("MINE", str(tmp_path / "mine")))
    warned: list[str] = []
    with pytest.raises(VsparseError, match="nothing is measured today"):
        profile_remote("device", folder, options=SHORT, warned=warned.append)
    assert loopback.left() == EMPTY
    assert warned == []
    assert (tmp_path / "mine").read_text() == "of the user"  # what a link in the folder leads to is not emptied


class Small:
    """A home of a few MB, on a file system of its own, which only the sessions see; needs namespaces of users."""

    def __init__(self, loopback: Loopback, megabytes: int) -> None:
        self.loopback = loopback
        made = f"mount -t tmpfs -o size={megabytes}m tmpfs {loopback.home} && echo ready && exec sleep 600"
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", made]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != "ready\n":
            self.holder.wait()
            pytest.skip("needs namespaces of users, which this system does not let its users make")
        enter = f"nsenter --target {self.holder.pid} --user --preserve-credentials --mount"
        loopback.session(before=f'[ -n "$SMALL" ] || SMALL=1 exec {enter} "$0"')
        loopback.home = Path(f"/proc/{self.holder.pid}/root{loopback.home}")
        self.filler = loopback.home / "of-others"

    def fill(self, leave: int = 0) -> None:
        """Takes all room but `leave` bytes."""
        with self.filler.open("wb", buffering=0) as stream:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        stream.write(bytes(size))
                except OSError:
                    continue
            stream.truncate(max(0, stream.tell() - leave))

    def left(self) -> tuple[list[tuple[int, str]], list[str]]:
        """As `Loopback.left`, with the disk full all the while."""
        deadline = time.monotonic() + 20
        while True:
            found = self.loopback.processes(), [path.name for path in self.loopback.home.iterdir() if path != self.filler]
            if not any(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def small(loopback: Loopback) -> Iterator[Small]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("needs unshare and nsenter (Debian package util-linux)")
    made = Small(loopback, 24)
    yield made
    made.close()


def test_a_disk_without_room_is_named_and_nothing_is_left_on_it(loopback: Loopback, folder: Path, small: Small) -> None:
    small.fill(leave=3 << 20)
    with pytest.raises(
        UnavailableError, match=r"no space is left in .*: [23] MB are free and 9 MB are needed; free some, or give --remote-dir"
    ):
        profile_remote("device", folder, options=SHORT)
    assert small.left() == EMPTY
    small.filler.unlink()
    assert profile_remote("device", folder, options=AgentOptions(runs=20, seconds=0.01, warmup=1, runtime="c")).passed
    assert loopback.left() == EMPTY


@pytest.mark.parametrize("when", ["the folder is made", "files are there", "something was measured"])
def test_a_disk_that_becomes_full_meanwhile_leaves_nothing_and_keeps_what_was_measured(
    loopback: Loopback, folder: Path, small: Small, tmp_path: Path, when: str
) -> None:
    wanted = {"the folder is made": "vsparse-run-*", "files are there": "vsparse-run-*/agent.py"}.get(when)
    running = Running(loopback, folder, tmp_path / "partial.json", LONG)
    if wanted is None:
        running.under_way()
    deadline = time.monotonic() + 60
    while wanted is not None and not list(loopback.home.glob(wanted)) and time.monotonic() < deadline:
        time.sleep(0.002)
    small.fill()
    running.thread.join(90)
    assert not running.thread.is_alive()
    assert small.left() == EMPTY
    assert isinstance(running.error, UnavailableError)
    assert re.search(r"(no space is left|No space left).*give --remote-dir a folder with room", str(running.error)), str(running.error)
    if wanted is None:
        assert str(running.partial) in str(running.error)
        assert [one.latency is not None for one in read_results(running.partial).measurements] == [True] * 3
