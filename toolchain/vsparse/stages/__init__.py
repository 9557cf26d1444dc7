"""The stages of the road, one package each; arrows between them point from report to train only."""
