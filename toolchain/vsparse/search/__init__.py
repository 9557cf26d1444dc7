"""Search for proofs: optimised slopes, branch and bound. It decides nothing: what it finds is proved by `vsparse.bounds`."""
