"""The client of a cluster: connects, refuses workers whose results would be others, and opens the workers of `local:N`."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

from distributed import Client, LocalCluster
from distributed.security import Security
from distributed.utils import sync

from vsparse.cluster.versions import differences, fingerprint
from vsparse.errors import ClusterError, InputError

# How long a scheduler may take to answer, and workers to be there.
CONNECT_SECONDS = 5.0
# How long whatever listens at the address may leave Dask's greeting unanswered: an accepted connection alone is no scheduler.
GREETING_SECONDS = 10.0
WORKERS_SECONDS = 15.0


class _Client(Client):  # type: ignore[misc]  # Dask ships types that are not checked here
    """A client that is closed by `Cluster.close` alone: one that failed to connect would say so a second time when it is collected.

    Dask's own waits without limit for the greeting of whatever accepts the connection; this one gives up (TimeoutError).
    """

    def start(self, **kwargs: Any) -> None:
        if self.status == "newly-created":
            self._loop_runner.start()
            sync(self.loop, self._start, callback_timeout=GREETING_SECONDS, **kwargs)

    def __del__(self) -> None:
        pass


class Cluster:
    """A connection to a scheduler whose workers have been looked at."""

    def __init__(self, address: str) -> None:
        """Connects; ClusterError where no scheduler answers or no worker is there, InputError where a worker is of another version."""
        quiet()
        self.address = address
        if address.startswith("tls://") and Security().get_connection_args("client").get("ssl_context") is None:
            raise InputError(
                f"--cluster {address}: tls needs certificates; name their files by DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY (docs/how-to-cluster.md)"
            )
        try:
            self.client = _Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="vsparse")
        except Exception as error:  # whatever the network, TLS or Dask finds wrong
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(
                f"--cluster {address}: no Dask scheduler answers there ({reason[0][:200]}); start one with `dask scheduler`, "
                "or give local:2"
            ) from error
        try:
            self._look_at_workers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; the cluster stays."""
        with suppress(Exception):
            self.client.close(timeout=2)

    @property
    def connected(self) -> bool:
        """Whether the scheduler is there."""
        return bool(self.client.status == "running")

    def threads(self) -> int:
        """Returns how many units can be worked on at once; 0 where that cannot be found out."""
        with suppress(Exception):
            return sum(self.client.nthreads().values())
        return 0

    def _look_at_workers(self) -> None:
        try:
            self.client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except Exception as error:
            raise ClusterError(
                f"--cluster {self.address}: the scheduler has no workers after {WORKERS_SECONDS:g} s; start some with "
                f"`dask worker {self.address} --nthreads 1`, and run the same command again"
            ) from error
        for worker, theirs in sorted(self._fingerprints().items()):
            if isinstance(theirs, (ImportError, AttributeError)):
                raise InputError(
                    f"--cluster {self.address}: worker {worker} has no vsparse that could work along ({theirs}); install there the wheel "
                    "that is installed here"
                )
            if isinstance(theirs, dict):
                require_same(self.address, worker, differences(fingerprint(), theirs))

    def _fingerprints(self) -> dict[str, Any]:
        """Returns the fingerprint of each worker by its address, or what asking for it raised there."""
        found: dict[str, Any] = self.client.run(fingerprint, on_error="return")
        return found


def require_same(address: str, worker: str, other: str) -> None:
    """Raises InputError where a worker differs from this machine in something that results depend on."""
    if other:
        raise InputError(
            f"--cluster {address}: worker {worker} would not answer the same bits ({other}); install there what is installed here, or "
            "leave that worker out"
        )


@contextmanager
def started_here(workers: int) -> Iterator[str]:
    """Yields the address of a scheduler with so many workers of one thread, which end with this process and with the block."""
    quiet()
    try:
        with _interrupts_held():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                preload="vsparse.cluster.uninterrupted",
                dashboard_address="127.0.0.1:0",  # nothing of it is to be seen from other machines
                silence_logs=False if _debugging() else logging.CRITICAL,
            )
    except Exception as error:
        raise ClusterError(f"--cluster local:{workers}: the workers cannot be started ({error}); leave --cluster out") from error
    try:
        yield str(cluster.scheduler_address)
    finally:
        with suppress(Exception):
            cluster.close(timeout=5)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A block in which Ctrl-C waits for its end, and whose child processes never see it: half-started ones end in pages of tracebacks."""
    resource_tracker.ensure_running()  # it would let interrupts through in whichever thread starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quiet() -> None:
    """Keeps what Dask logs from stderr, where our own sentences and progress are; VSPARSE_DEBUG=1 shows it."""
    if not _debugging():
        for name in ("distributed", "tornado", "asyncio", "bokeh"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _debugging() -> bool:
    return bool(os.environ.get("VSPARSE_DEBUG"))
