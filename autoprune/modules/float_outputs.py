"""Anchors and outputs of heads in float32 under autocast, so that boxes are matched and decoded exactly.

Below a head everything may be computed in bfloat16. But torchvision's detectors give their anchors the type
of the feature maps, and decode them in that of the predicted offsets: in bfloat16, with 8 bits of precision,
a corner at 700 pixels moves by up to 2. Anchors once rounded stay so, as the generator keeps them.
The mAP of the demo's detector at 128 pixels is 79.13 in float32 (192 images), 79.41 under autocast of the
CPU, which is too far from it to be trusted, and 79.07 with these outputs in float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

HEADS = (
    "head",
    "rpn.head",
    "roi_heads.box_predictor",
    "roi_heads.mask_predictor",
    "roi_heads.keypoint_predictor",
)
"""Where torchvision's detectors make what they decode."""
_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def float_anchors(model: nn.Module) -> Iterator[None]:
    """Inside the block torchvision's anchors are float32, whatever the type of the feature maps."""
    from torchvision.models.detection.anchor_utils import (
        AnchorGenerator,
        DefaultBoxGenerator,
    )  # slow to import

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, AnchorGenerator | DefaultBoxGenerator):
                stack.callback(module.register_forward_pre_hook(_with_float_maps, with_kwargs=True).remove)
        yield


def _with_float_maps(module: nn.Module, *arguments: Any) -> Any:
    """The arguments with float32 maps of the same shapes; of a map, anchors need no more than its shape."""
    return tree_map_only(
        Tensor,
        lambda x: torch.empty((), device=x.device).expand(x.shape) if x.dtype in _HALF else x,
        arguments,
    )


@contextmanager
def float_outputs(model: nn.Module) -> Iterator[None]:
    """Inside the block anchors and what the heads return is float32; other detectors stay as they are."""
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(float_anchors(model))
        for name in HEADS:
            if name in modules:
                stack.callback(
                    modules[name].register_forward_hook(lambda _, args, output: to_float(output)).remove
                )
        yield


def to_float(tree: Any) -> Any:
    """The same tree (lists, tuples, named ones, dicts), with tensors of half precision as float32."""
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype in _HALF else x, tree)
