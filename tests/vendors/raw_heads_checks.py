"""What raw heads of every vendor's detector have to do."""

import numpy as np
import torch

from autoprune.runtimes.raw_heads import RawHeads, detect_padded, resize_and_pad


@torch.inference_mode()
def check_decoding(detector, images, input_size):
    """Dense outputs, decoded with NumPy, are what the detector's own code finds in the same pixels."""
    raw, count = RawHeads(detector, input_size), 0
    for image in images:
        pixels, size = resize_and_pad(image, raw.frame)
        expected = detect_padded(detector, torch.from_numpy(pixels), size)
        boxes, scores = raw(torch.from_numpy(pixels))
        assert boxes.shape == (1, sum(raw.frame.levels), 4)
        found = raw.frame.detections(boxes[0].numpy(), scores[0].numpy(), size)
        apart = np.abs(expected["boxes"].numpy()[:, None] - found.boxes).max(-1, initial=0) / 0.01
        apart = np.maximum(apart, np.abs(expected["scores"].numpy()[:, None] - found.scores) / 1e-5)
        apart[expected["labels"].numpy()[:, None] != found.labels] = np.inf
        both = min((apart <= 1).any(axis).sum() for axis in (0, 1)) if apart.size else 0
        assert both >= 0.99 * max(apart.shape), f"{both} of {apart.shape}"
        count += len(found.scores)
    assert count > 5 * len(images)
    return raw


@torch.inference_mode()
def check_file(raw, session):
    """A file of raw heads computes what torch computes."""
    shape = (1, 3, raw.frame.height, raw.frame.width)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    for got, expected in zip(session(image.numpy()), raw(image), strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected.numpy()).max() <= 1e-3 * float(expected.abs().max())
