"""What stands between ssh and the agent on a device: sent over ssh, never written there, standard library only, Python 3.8.

It makes a folder, takes the files, runs the agent, and sends back what was measured as it grows. It ends the agent with every
process of it, and removes the folder, when the connection is lost, when nothing has been heard for `SILENCE_S`, when it is
asked to, and at a time limit. Messages are lines of JSON that begin with a mark: what a shell prints by itself is no message.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from typing import Any, NoReturn

SILENCE_S = 20
POLL_S = 1.0
REMOVAL_S = 15  # how long the folder is tried to be removed
LOCKED_S = 10  # how long a run that is just being ended is waited for
PREFIX, KEPT = "vsparse-run-", "vsparse-kept-"
OURS = re.compile(PREFIX + r"[a-z0-9_]{8}\Z")
MOST = 1 << 26  # bytes of results


class Refused(Exception):
    """Ends with a sentence before anything ran."""


class Supervisor:
    """One run on the device, from the folder that is made to the folder that is removed."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.heard, self.watching = given, time.monotonic(), True
        self.events: queue.Queue[tuple[str, str]] = queue.Queue()
        self.source, self.replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
        self.folder, self.sent, self.lock, self.base = "", "", -1, os.getcwd()
        self.agent: Any = None
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Ends what waits for files that do not come; once the agent runs, `attend` looks after silence."""
        while self.watching:
            time.sleep(POLL_S)
            if self.watching and time.monotonic() - self.heard > SILENCE_S:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def tell(self, **message: Any) -> None:
        try:
            self.replies.write(b"\x01vsparse " + json.dumps(message).encode() + b"\n")
            self.replies.flush()
        except (OSError, ValueError):
            self.events.put(("gone", ""))

    def refuse(self, sentence: str) -> NoReturn:
        raise Refused(sentence)

    def prepare(self) -> None:
        base = self.given["directory"]
        if base:
            self.base = os.path.abspath(os.path.expanduser(base))
        try:
            self.lock = os.open(self.base, os.O_RDONLY)
        except OSError as error:
            self.refuse(f"{self.base} cannot be opened ({error.strerror}); give --remote-dir a folder that is there")
        self.take_lock()
        for name in os.listdir(self.base):  # of runs that lost their power: one that lives holds the lock
            if OURS.match(name):
                shutil.rmtree(os.path.join(self.base, name), ignore_errors=True)
        try:
            self.folder = tempfile.mkdtemp(prefix=PREFIX, dir=self.base)
        except OSError as error:
            self.refused(error)
        info = os.statvfs(self.base)
        self.tell(
            event="ready",
            folder=self.folder,
            machine=platform.machine(),
            python=platform.python_version(),
            free_bytes=info.f_bavail * info.f_frsize,
            compiler=next((one for one in map(shutil.which, ("cc", "gcc", "clang")) if one), ""),
        )

    def take_lock(self) -> None:
        """Waits a while for the lock of the folder that runs are in; every process of a run holds it."""
        deadline = time.monotonic() + LOCKED_S
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    return  # a file system without locks
                if time.monotonic() > deadline:
                    self.refuse(f"another run is measuring there, in {self.base}; wait until it has ended")
            time.sleep(0.25)
            self.heard = time.monotonic()

    def refused(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.refuse(f"no space is left in {self.base}; free some, or give --remote-dir a folder with room")
        self.refuse(f"{self.base} cannot be written ({error.strerror}); give --remote-dir a folder that can, such as /tmp")

    def take(self) -> list[str]:
        """Reads the files, and returns the arguments of the agent."""
        line = b"\n"
        while not line.strip():  # signs of life, while libraries are compiled for this device
            line = self.source.readline(1 << 20)
            self.heard = time.monotonic()
            if not line:
                self.refuse("the connection was lost before files were copied")
        order = json.loads(line)
        info = os.statvfs(self.folder)
        free, needed = info.f_bavail * info.f_frsize, 2 * order["bytes"] + (8 << 20)
        if free < needed:
            told = "no space is left in {}: {} MB are free and {} MB are needed; free some, or give --remote-dir a folder with room"
            self.refuse(told.format(self.base, free >> 20, (needed >> 20) + 1))
        try:
            stream_of: Any = Exactly(self.source, order["bytes"], self.hear)
            with tarfile.open(fileobj=stream_of, mode="r|") as files:
                for member in files:
                    name = member.name
                    if not member.isfile() or "/" in name or name.startswith("."):
                        self.refuse(f"a file that was sent has the name {name!r}")
                    data, digest = files.extractfile(member), hashlib.sha256()
                    with open(os.path.join(self.folder, name), "wb") as stream:
                        piece = data.read(1 << 20) if data else b""
                        while data and piece:
                            stream.write(piece)
                            digest.update(piece)
                            piece = data.read(1 << 20)
                    if digest.hexdigest() != order["files"].get(name):
                        self.refuse(f"{name} arrived damaged; run it again")
        except OSError as error:
            self.refused(error)
        except (EOFError, tarfile.TarError):
            self.refuse("the connection was lost while files were copied")
        self.watching = False
        return list(order["arguments"])

    def hear(self) -> None:
        self.heard = time.monotonic()

    def listen(self) -> None:
        while True:
            line = self.source.readline(1 << 10)
            self.heard = time.monotonic()
            if not line or line.strip() == b"stop":
                self.events.put(("stop" if line else "gone", ""))
                return

    def follow(self, stream: Any) -> None:
        for line in stream:
            self.events.put(("said", line.decode("utf-8", "replace").rstrip()[:2000]))
        self.events.put(("closed", ""))

    def start(self, arguments: list[str]) -> None:
        more = ["--watched", self.folder, "--inherit", str(self.lock)]
        command = [sys.executable, os.path.join(self.folder, "agent.py"), *arguments, *more]
        # What libraries keep for later (caches), and what a compiler that is killed leaves, goes with the folder.
        environment = dict(os.environ, XDG_CACHE_HOME=os.path.join(self.folder, "cache"), TMPDIR=self.folder)
        with open(os.path.join(self.folder, "agent.out"), "wb") as out:
            self.agent = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                pass_fds=[self.lock],
            )
        for target, given in ((self.listen, ()), (self.follow, (self.agent.stderr,))):
            threading.Thread(target=target, args=given, daemon=True).start()

    def send_results(self) -> None:
        """Sends what was measured, where it is other than what was sent last."""
        for name in ("results.json", "results.partial.json"):
            try:
                with open(os.path.join(self.folder, name), "rb") as stream:
                    info = os.fstat(stream.fileno())
                    seen = f"{name} {info.st_ino} {info.st_mtime_ns} {info.st_size}"
                    if seen == self.sent:
                        return
                    data = stream.read(MOST + 1)
            except OSError:
                continue
            self.sent = seen
            if len(data) <= MOST:
                self.tell(event="results", name=name, data=base64.b64encode(zlib.compress(data)).decode())
            return

    def attend(self) -> str:
        """Returns why the run is over: done, stop, gone, silence or late."""
        began, looked = time.monotonic(), 0.0
        while True:
            try:
                what, text = self.events.get(timeout=POLL_S)
            except queue.Empty:
                what, text = "", ""
            if what == "said":
                self.tell(event="said", text=text)
            elif what == "closed":
                self.agent.wait()
                return "done"
            elif what:
                return what
            if self.agent.poll() is not None and what == "":
                return "done"
            now = time.monotonic()
            if now - self.heard > SILENCE_S:
                return "silence"
            if now - began > self.given["timeout"]:
                return "late"
            if now - looked > POLL_S:
                looked = now
                self.send_results()

    def end_agent(self) -> None:
        if self.agent is None:
            return
        for number, seconds in ((signal.SIGTERM, 3), (signal.SIGKILL, 5)):
            with contextlib.suppress(OSError):
                os.killpg(self.agent.pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.group_lives():
                time.sleep(0.05)
            if not self.group_lives():
                return

    def group_lives(self) -> bool:
        """Whether any process of the agent's session is left; the agent itself is reaped here."""
        self.agent.poll()
        try:
            os.killpg(self.agent.pid, 0)
        except OSError:
            return False
        return True

    def run(self) -> int:
        why, code = "", None
        given = self.given
        try:
            self.prepare()
            self.start(self.take())
            why = self.attend()
            if why != "done":
                self.end_agent()
            code = self.agent.returncode
        except Refused as refused:
            self.tell(event="refused", sentence=str(refused))
        except (Stopped, Exception) as error:
            self.tell(event="refused", sentence=f"the run ended there: {error!r}"[:500])
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing ends what removes the folder
            self.watching = False
            self.end_agent()
            keep = given["keep"] and self.agent is not None
            if self.agent is not None:
                self.send_results()
                self.tell(event="over", why=why, code=code)
            if self.folder and keep:
                kept = os.path.join(self.base, KEPT + self.folder[-8:])
                with contextlib.suppress(OSError):
                    os.rename(self.folder, kept)
                self.tell(event="kept", folder=kept)
            elif self.folder:
                self.tell(event="removed" if self.removed() else "left", folder=self.folder)
        return 0

    def removed(self) -> bool:
        """Removes the folder, again and again while something that is being ended still writes there; returns whether it is gone."""
        deadline = time.monotonic() + REMOVAL_S
        while True:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.lexists(self.folder):
                return True
            if time.monotonic() > deadline:
                return False
            for place, _, names in os.walk(self.folder):  # where a removal takes room, as on a full Btrfs, this makes some
                for name in names:
                    with contextlib.suppress(OSError):
                        os.close(os.open(os.path.join(place, name), os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK))
            time.sleep(0.1)


class Exactly:
    """The next so many bytes of a stream, and no more; EOFError where it ends before."""

    def __init__(self, stream: Any, left: int, heard: Any) -> None:
        self.stream, self.left, self.heard = stream, left, heard

    def read(self, size: int = -1) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        data: bytes = self.stream.read(wanted)
        if len(data) < wanted:
            raise EOFError
        self.left -= len(data)
        self.heard()
        return data


class Stopped(BaseException):
    """A signal."""


def stopped(number: int, frame: Any) -> None:
    raise Stopped(f"signal {number}")


def supervise(given: dict[str, Any]) -> None:
    """Runs to the end of one run, and exits."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stopped)
    os.umask(0o077)
    sys.exit(Supervisor(given).run())
