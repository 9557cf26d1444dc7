"""The stages of the pipeline, one package each; arrows between them point from report to train only."""
