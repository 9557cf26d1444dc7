"""A connection whose other end takes nothing more must not keep this process."""

from __future__ import annotations

import time

import pytest

from vsparse.stages.profile.connection import Connection


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
