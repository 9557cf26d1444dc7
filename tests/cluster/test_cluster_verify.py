"""Verification on two workers: the certificate of one machine to the last bit, whatever happens to workers and to the client."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from distributed import Client

from vsparse.cluster import client as client_module
from vsparse.cluster import engine as engine_module
from vsparse.cluster.client import Cluster, started_here
from vsparse.cluster.engine import Engine, Flight, Shared, Unit, UnitAnswer
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.errors import ClusterError, InputError
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Data, Verify
from vsparse.stages.verify import Certificate, certify

METHODS = ("interval", "branch-and-bound")
SAMPLES, SETTINGS = 40, Verify(methods=METHODS, batch_size=8, attack_steps=5, attack_restarts=1, branch_domains=64)


def certificate_of(
    network: Path, cluster: str | None, state: Path | None = None, told: Callable[[int, int], None] | None = None, epsilon: str = "0.06"
) -> Certificate:
    """Certifies 40 digits in five batches."""
    return certify(
        network,
        load(Data(), None, 0).test,
        PerturbationSet(epsilon=epsilon),
        CONTRACTS["fp32"],
        SETTINGS,
        samples=SAMPLES,
        state_directory=state,
        progress=told,
        cluster=cluster,
    )


@pytest.fixture(scope="module")
def alone(network: Path) -> Certificate:
    """The certificate that one process makes."""
    found = certificate_of(network, None)
    methods = Counter(claim.method for claim in found.claims)
    assert methods["branch-and-bound"] >= 10, methods
    return found


def test_two_workers_give_the_certificate_of_one_process_after_an_interrupt_and_with_one_of_them_killed(
    network: Path, alone: Certificate, two_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, sent, killed = tmp_path / "state", [], []
    plain = Engine._send

    def counted(engine: Engine, flight: Flight) -> None:
        sent.append(flight.unit.name)
        plain(engine, flight)

    def interrupt(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    def kill_one(done: int, total: int) -> None:
        if len(finished) * 8 < done < total and not killed:
            with Client(two_workers, set_as_default=False) as dask:
                killed.extend(list(dask.run(os.getpid).values())[:1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Engine, "_send", counted)
    with pytest.raises(KeyboardInterrupt):
        certificate_of(network, two_workers, state, interrupt)
    finished, searched = ({path.name for path in state.glob(f"{kind}-*")} for kind in ("batch", "settled"))
    assert 2 <= len(finished) < 5
    sent.clear()
    together = certificate_of(network, two_workers, state, kill_one)
    assert killed
    assert together.digest() == alone.digest()
    assert together.proofs == alone.proofs
    assert together.counterexamples_sha256 == alone.counterexamples_sha256
    asked = {name.partition(" (")[0] for name in sent}
    assert asked, "the interrupt left something to do"
    assert not {f"batch {int(name[6:12])}" for name in finished} & asked
    assert not {f"the search of sample {8 * int(name[8:14]) + int(name[15:21])}" for name in searched} & asked
    left = [path.name for path in state.iterdir() if not path.name.startswith("batch-")]
    assert sorted(left) == ["model.onnx", "plan.json", "samples.npz"], "the files of pieces go when their batch is put together"


def test_a_worker_of_another_version_is_refused_before_any_work(two_workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {**client_module.fingerprint(), "code": "f" * 64, "torch": "9.9.9"}
    monkeypatch.setattr(client_module, "fingerprint", lambda: ours)
    monkeypatch.setattr(Cluster, "_fingerprints", lambda cluster: cluster.client.run(_versions))
    with pytest.raises(InputError) as refused:
        Cluster(two_workers)
    assert "torch" in str(refused.value)
    assert "9.9.9 here" in str(refused.value)
    assert "the code of vsparse has the hash" in str(refused.value)
    assert "ffffffffffff here" in str(refused.value)


def _versions() -> dict[str, str]:
    from vsparse.cluster.versions import fingerprint

    return fingerprint()


def test_a_cluster_that_is_not_there_and_one_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(client_module, "WORKERS_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="no Dask scheduler answers there") as absent:
        Cluster("tcp://127.0.0.1:9")
    assert absent.value.exit_code == 3
    with started_here(0) as address, pytest.raises(ClusterError, match="has no workers") as empty:
        Cluster(address)
    assert empty.value.exit_code == 3


def test_a_port_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits for more, as one of HTTP does with Dask's greeting, accepts the connection and never answers."""
    monkeypatch.setattr(client_module, "GREETING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="no Dask scheduler answers there") as refused:
        Cluster(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    assert refused.value.exit_code == 3


def test_a_cluster_that_is_lost_in_the_middle_is_told_and_what_was_finished_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(engine_module, "perform", _answered)
    kept: list[str] = []
    with ExitStack() as scheduler:
        address = scheduler.enter_context(started_here(1))

        def done(unit: Unit, answer: UnitAnswer) -> list[Unit]:
            kept.append(unit.name)
            if len(kept) == 3:
                scheduler.close()
            return []

        with Cluster(address) as cluster, pytest.raises(ClusterError, match="lost in the middle") as lost:
            Engine(cluster, Shared("run", "verify", {})).run([Unit(str(number), {}) for number in range(100)], done)
    assert lost.value.exit_code == 3
    assert len(kept) >= 3


def _answered(text: str, attached: dict[str, bytes]) -> dict[str, object]:
    import time

    from distributed import get_worker

    time.sleep(0.02)
    return {"worker": get_worker().address, "files": {}, "result": {}}


def test_a_process_that_needs_too_much_memory_is_tried_elsewhere_and_then_told(
    network: Path, two_workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def too_much(text: str, attached: dict[str, bytes]) -> dict[str, object]:
        from distributed import get_worker

        return {"worker": get_worker().address, "memory": "it needed more than the 0.1 GiB of the worker"}

    plain = Engine._lost

    def told(engine: Engine, flight: Flight, reason: str) -> None:
        tried.extend(flight.avoid[-1:])
        plain(engine, flight, reason)

    monkeypatch.setattr(engine_module, "perform", too_much)
    monkeypatch.setattr(Engine, "_lost", told)
    with pytest.raises(InputError, match=r"lost on 4 workers .*lower verify\.batch_size"):
        certificate_of(network, two_workers)
    assert len(set(tried)) == 2, "both workers were tried"
