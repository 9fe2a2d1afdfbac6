"""The detections of a detector on images of a split, in the form of COCO's results files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.data.coco import Split
from autoprune.data.evaluators import NONE, Detections
from autoprune.errors import ModelError
from autoprune.images.batch import Sample, make_sample, pinned, to_batch
from autoprune.images.decode import threads
from autoprune.images.prefetch import prefetched
from autoprune.modules.batch_fit import BatchFit
from autoprune.modules.float_outputs import float_outputs
from autoprune.progress import track


def detect(
    model: nn.Module,
    split: Split,
    chosen: Sequence[int],
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    amp: bool = False,
) -> Detections:
    """Runs a detector on images of a split; see `evaluate` for the arguments.

    Args:
        model: not modified.
        split: the images.
        chosen: their indices.
        device: device of the images.
        batch_size: images per forward pass.
        amp: bfloat16 autocast, on CUDA only.

    Returns:
        The detections of all images; labels that are not in the data are omitted.

    Raises:
        ModelError: the model does not return what torchvision's detectors do.
    """
    device = torch.device(device)
    with (
        _ready_to_detect(model),
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"),
        prefetched(partial(_load, split, device), chosen, 2 * max(batch_size, threads())) as samples,
        float_outputs(model),
    ):
        return _detect(model, split, chosen, samples, device, batch_size)


def _load(split: Split, device: torch.device, index: int) -> Sample:
    return pinned(make_sample(*split.get(index)), device)


@contextmanager
def _ready_to_detect(model: nn.Module) -> Iterator[None]:
    """Eval mode and channels_last inside the block; modes and the tensors themselves are as before after it.

    channels_last takes a third off the time of a convolutional detector on a CPU.
    """
    modes = [(module, module.training) for module in model.modules()]
    kernels = [(tensor, tensor.data) for tensor in model.parameters() if tensor.dim() == 4]
    try:
        for tensor, values in kernels:
            tensor.data = values.contiguous(memory_format=torch.channels_last)
        model.eval()
        yield
    finally:
        for tensor, values in kernels:
            tensor.data = values
        for module, training in modes:
            module.training = training


def _detect(
    model: nn.Module,
    split: Split,
    chosen: Sequence[int],
    samples: Iterator[Sample],
    device: torch.device,
    batch_size: int,
) -> Detections:
    detections, fit = [NONE], BatchFit()
    starts = range(0, len(chosen), batch_size)
    for start in track(starts, "evaluation"):
        indices = chosen[start : start + batch_size]
        pictures, _ = to_batch([next(samples) for _ in indices], device)
        outputs = fit.run(len(pictures), partial(_outputs, model, pictures), "is evaluated in parts of {}")
        if not _has_torchvisions_form(outputs, len(pictures)):
            raise ModelError(
                f"in eval mode {type(model).__name__} must return one {{boxes, scores, labels}} per image of "
                "a list, boxes [n, 4] with n scores and n labels, as torchvision's detectors do; fix the "
                "factory that model names"
            )
        for index, output in zip(indices, outputs, strict=True):
            detections.append(detections_of(split, index, output))
    return np.concatenate(detections)


def _outputs(model: nn.Module, pictures: list[torch.Tensor], parts: Sequence[slice]) -> Any:
    if len(parts) == 1:
        return model(pictures)
    return [output for part in parts for output in model(pictures[part])]


def _has_torchvisions_form(outputs: Any, count: int) -> bool:
    if not isinstance(outputs, list | tuple) or len(outputs) != count:
        return False
    return all(isinstance(output, dict) and _is_detections(output) for output in outputs)


def _is_detections(output: dict[str, Any]) -> bool:
    parts: list[Any] = [output.get(name) for name in ("boxes", "scores", "labels")]
    if not all(isinstance(part, torch.Tensor) for part in parts):
        return False
    boxes, scores, labels = (tuple(part.shape) for part in parts)
    return scores == labels and len(scores) == 1 and boxes == (*scores, 4)


def detections_of(split: Split, index: int, output: dict[str, torch.Tensor]) -> Detections:
    """The detections of one image; labels that are not in the data are omitted.

    Args:
        split: holds the image.
        index: its index.
        output: ``boxes`` [n, 4] in pixels of the image at the detector's size, ``scores`` and ``labels`` [n].

    Raises:
        ModelError: a box or a score is not finite.
    """
    (height, width), (new_height, new_width) = split.stored_sizes[index], split.sizes[index]
    if not (output["boxes"].isfinite().all() and output["scores"].isfinite().all()):
        raise ModelError(
            f"the detector gives boxes or scores that are NaN or infinite on {split.files[index]}; "
            "its weights are of a training that diverged, or its factory is at fault"
        )
    boxes = output["boxes"].double().cpu().numpy().reshape(-1, 4) * (
        [width / new_width, height / new_height] * 2
    )
    scores, labels = output["scores"].double().cpu().numpy(), output["labels"].cpu().numpy()
    known = np.isin(labels, list(split.category_ids))
    columns = (
        np.full(len(boxes), split.image_ids[index]),
        *boxes[:, :2].T,
        *(boxes[:, 2:] - boxes[:, :2]).T,
        scores,
        [split.category_ids.get(label, 0) for label in labels.tolist()],
    )
    return np.stack(columns, axis=1)[known]
