"""Checkpoints: files of weights, read without running code of them, and fitted to a model by their names."""
