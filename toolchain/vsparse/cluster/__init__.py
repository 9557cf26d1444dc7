"""Work on more than one machine, by Dask distributed: an extra, imported only where a cluster is asked for."""
