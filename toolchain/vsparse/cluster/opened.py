"""Opens what `--cluster` names. Dask is an extra: it is imported here alone, and only where a cluster is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from vsparse.cluster.address import local_workers
from vsparse.errors import UnavailableError


def require_dask() -> None:
    """Raises UnavailableError where Dask distributed is not installed."""
    if find_spec("distributed") is None:
        raise UnavailableError("--cluster needs Dask distributed, which is not installed; pip install 'vsparse[cluster]'")


def require_openable(cluster: str | None) -> None:
    """Raises, before anything else is done, what `opened` raises without a look at the network."""
    if cluster is not None:
        local_workers(cluster)
        require_dask()


@contextmanager
def opened(cluster: str | None) -> Iterator[str | None]:
    """Yields the address of the scheduler that `--cluster` names, its workers looked at; starts those of `local:N` for the block.

    None, which asks for no cluster, stays None. Raises InputError for what is no address and for workers of another version,
    UnavailableError where Dask is not installed, ClusterError where no scheduler or no worker is there.
    """
    if cluster is None:
        yield None
        return
    require_openable(cluster)
    workers = local_workers(cluster)
    from vsparse.cluster.client import Cluster, started_here

    if workers is not None:
        with started_here(workers) as address:
            Cluster(address).close()
            yield address
        return
    Cluster(cluster).close()
    yield cluster
