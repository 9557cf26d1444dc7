"""The pipeline from a recipe and a target to an artifact: stages and their keys, cache, gates, key figures, what is put on the device."""
