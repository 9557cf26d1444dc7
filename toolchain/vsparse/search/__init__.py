"""Search for proofs: optimised slopes, branch and bound. Float32, and no verdict rests on it: what it finds is proved in `vsparse.bounds`."""
