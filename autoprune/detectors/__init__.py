"""Detectors: by torchvision's names, by autoprune's own, or from a user's factory; weights and inputs."""

from autoprune.checkpoints.prefixes import State
from autoprune.detectors.factories import build, names, with_norm
from autoprune.detectors.inputs import detector_inputs
from autoprune.detectors.weights import load_dense, load_state, save_state
from autoprune.resize import Resize, pixel_resizing, resize_rule, resized

__all__ = [
    "Resize",
    "State",
    "build",
    "detector_inputs",
    "load_dense",
    "load_state",
    "names",
    "pixel_resizing",
    "resize_rule",
    "resized",
    "save_state",
    "with_norm",
]
