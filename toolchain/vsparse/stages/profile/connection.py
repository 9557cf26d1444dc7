"""One ssh connection to a device: the supervisor is sent over it, files follow, messages come back; and what ssh's failures mean."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import shlex
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from vsparse.errors import InputError, UnavailableError

# A host name, with an optional user; never an option: ssh reads what begins with "-" as one.
HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9\[][A-Za-z0-9_.:\[\]-]*")
WITH_PORT = re.compile(r"([^:\[\]]+|[^\[\]]*\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
BEAT_S = 2.0
MOST_LINE = 2**27
# Reads the supervisor and what it is given, and runs it. No single quote, "!" or line break: any shell takes it in single quotes.
STUB = (
    "import sys,json;"
    'sys.version_info<(3,8) and sys.exit("vsparse: python3 is %d.%d there" % sys.version_info[:2]);'
    "b=sys.stdin.buffer;c=b.read(int(b.readline()));g={};"
    'exec(compile(c,"supervisor","exec"),g);g["supervise"](json.loads(b.readline()))'
)
SUPERVISOR = Path(__file__).with_name("supervisor.py")
MARK = b"\x01vsparse "
REASONS = (
    (
        "Host key verification failed|IDENTIFICATION HAS CHANGED",
        "its host key is not known here, or has changed; compare it once by hand: {ssh} true",
    ),
    (
        "Permission denied|Too many authentication failures|no matching host key|sign_and_send_pubkey",
        "it refuses the key that ssh offers; install yours there: {copy}",
    ),
    ("Could not resolve|Name or service not known", "no address is known for that name; check how it is written, or give its number"),
    ("Connection refused", "it is there, and no sshd answers (connection refused); start one there, or give {port}"),
    (
        "timed out|No route to host|unreachable|Host is down",
        "it does not answer; check that it is on and in the same network: ping {address}",
    ),
    ("python3: (command )?not found|python3: No such file|not found: python3|Unknown command: python3", "it has no python3; {install}"),
    ("stopped reading what it was sent", "it stopped reading what it was sent; see there whether it has memory and space, then run again"),
    (r"vsparse: python3 is (\d+\.\d+) there", "its python3 is older than 3.8; {install}"),
)
INSTALL = "install it there (Debian, Ubuntu: sudo apt install python3), then run again"


def ssh_command(host: str) -> list[str]:
    """Returns how a host is reached: by ssh of the system, or by the command of VSPARSE_SSH; InputError for what is no host."""
    if not HOST.fullmatch(host):
        raise InputError(f'"{host}" is not user@address; write it as ssh does, such as robot@192.168.1.20')
    address, port = parted(host)
    return [*own_command(), *OPTIONS, *(["-p", port] if port else []), address]


def own_command() -> list[str]:
    """Returns the words of VSPARSE_SSH, or ssh; InputError for what a shell would not take."""
    try:
        return shlex.split(os.environ.get("VSPARSE_SSH", "")) or ["ssh"]
    except ValueError as error:
        raise InputError(f"VSPARSE_SSH is no command ({error}); write it as a shell takes it, such as ssh -F FILE") from error


def parted(host: str) -> tuple[str, str]:
    """Returns what ssh takes as the address, without brackets, and the port that stood behind it; empty without one."""
    with_port = WITH_PORT.fullmatch(host)
    address, port = (with_port[1], with_port[2]) if with_port else (host, "")
    return re.sub(r"\[([0-9A-Fa-f:.]+)\]$", r"\1", address), port


def by_hand(host: str) -> dict[str, str]:
    """Returns commands for a host as a user would type them: with the port as each takes it, and the options of VSPARSE_SSH."""
    address, port = parted(host)
    own, place = own_command(), [*(["-p", port] if port else []), address]
    bare = address.rpartition("@")[2]
    brackets = address[: -len(bare)] + f"[{bare}]" if ":" in bare else address
    # What ssh-copy-id takes too; of anything else, a password for sshpass may be a part, nothing is printed.
    names, values = own[1::2], own[2::2]
    told = os.path.basename(own[0]) == "ssh" and len(names) == len(values) and set(names) <= {"-F", "-i", "-o", "-p"}
    given = own[1:] if told else []
    return {
        "ssh": shlex.join(["ssh", *given, *place]),
        "copy": shlex.join(["ssh-copy-id", *given, *place]),
        "address": shlex.quote(bare),
        "port": f"another port than {port}" if port else f"the port: {brackets}:PORT",
    }


class Connection:
    """ssh in a session of its own, so that Ctrl-C reaches this process alone, which then ends what runs on the device.

    `receive` returns the next message; what shells print beside is left out.
    """

    def __init__(self, host: str, given: dict[str, Any]) -> None:
        self.host, self.said, self.messages = host, list[str](), queue.Queue[dict[str, Any]](1000)
        command = [*ssh_command(host), "exec python3 -u -c '" + STUB + "'"]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise UnavailableError(
                f"{command[0]} is not installed here; install an OpenSSH client, or copy the device/ folder by hand"
            ) from error
        self.writing, self.closing = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._read, self._read_errors)]
        for one in self.threads:
            one.start()
        source = SUPERVISOR.read_bytes()
        self.send(f"{len(source)}\n".encode() + source + json.dumps(given).encode() + b"\n")
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, data: bytes) -> None:
        """Sends bytes; what a lost connection does not take shows in what is received."""
        assert self.process.stdin is not None
        with self.writing, contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def send_meanwhile(self, data: bytes) -> None:
        """Sends bytes from a thread: a device that stops reading must not keep this process from its time limit."""
        threading.Thread(target=self.send, args=(data,), daemon=True).start()

    def receive(self, deadline: float) -> dict[str, Any]:
        """Returns the next message; `event` is `closed` at the end, `late` at the deadline of time.monotonic()."""
        try:
            return self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return {"event": "late"}

    def _beat(self) -> None:
        """Gives a sign of life now and then: a device that hears none ends what runs there."""
        while not self.closing.wait(BEAT_S):
            self.send(b"\n")

    def stop(self) -> None:
        """Asks the device to end what runs, and closes its input, which ends it too where it is still reading files."""
        self._close_input(b"stop\n")

    def close(self) -> None:
        """Ends ssh; the device sees the end of its input and cleans up by itself where it has not yet."""
        self._close_input()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _close_input(self, last: bytes = b"") -> None:
        """Closes what the device reads; where something is still being sent that it does not read, ssh is ended, which it sees too."""
        self.closing.set()
        assert self.process.stdin is not None
        if not self.writing.acquire(timeout=BEAT_S):
            self._give_up()
            return
        try:
            with contextlib.suppress(OSError, ValueError):
                if not select.select([], [self.process.stdin], [], BEAT_S)[1]:
                    self._give_up()  # what was sent before is not read either
                if last:
                    self.process.stdin.write(last)
                self.process.stdin.close()
        finally:
            self.writing.release()

    def _give_up(self) -> None:
        """Ends ssh, whose other end takes nothing more."""
        self.said.append("it stopped reading what it was sent")
        self.process.kill()

    def reason(self) -> str:
        """Why the connection is no more, with a way out; from what ssh, or the shell there, said."""
        self.process.wait()
        for one in self.threads:
            one.join(2)
        text = "\n".join(self.said)
        for pattern, sentence in REASONS:
            if re.search(pattern, text):
                return sentence.format(install=INSTALL, **by_hand(self.host))
        if self.process.returncode == 127:
            return f"it has no python3; {INSTALL}"
        last = self.said[-1] if self.said else f"ssh ended with exit code {self.process.returncode}"
        return f"{printable(last)}; try: {by_hand(self.host)['ssh']} python3 --version"

    def _read(self) -> None:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline(MOST_LINE):
            if line.startswith(MARK):
                try:
                    message = json.loads(line[len(MARK) :])
                except (ValueError, RecursionError):
                    continue
                if isinstance(message, dict):
                    self.messages.put(message)
        self.messages.put({"event": "closed"})

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while line := self.process.stderr.readline(4096):
            self.said = [*self.said[-50:], line.decode("utf-8", "replace").rstrip()]


def printable(text: object, limit: int = 500) -> str:
    """Returns text from a device on one line without control characters, which could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit]).strip()[:limit]
