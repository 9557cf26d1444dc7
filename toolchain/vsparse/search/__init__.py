"""Search for proofs: optimised slopes, branch and bound. Searches decide nothing: `vsparse.bounds` proves what they find."""
