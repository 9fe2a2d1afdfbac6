"""A pruned detector as files: a folder that `load` reads, ONNX that other runtimes read, a model card."""

from autoprune.export.folder import largest_difference, load, save_detector

__all__ = ["largest_difference", "load", "save_detector"]
