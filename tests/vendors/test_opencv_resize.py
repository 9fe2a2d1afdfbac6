import numpy as np
import pytest
import torch

from autoprune.vendors.opencv_resize import resize_as_opencv

cv2 = pytest.importorskip("cv2")

SIZES = [
    ((48, 64), (96, 96)),
    ((97, 41), (33, 20)),
    ((40, 40), (20, 20)),
    ((63, 50), (31, 77)),
    ((5, 1), (9, 4)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_it_has_the_pixels_of_opencv(old, new):
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    resized = resize_as_opencv(torch.from_numpy(image).permute(2, 0, 1) / 255, new)
    assert resized.dtype == torch.float32
    assert torch.equal((resized * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))


def test_a_constant_image_stays_constant():
    image = torch.full((3, 7, 5), 114 / 255)
    assert torch.equal(resize_as_opencv(image, (13, 4)), torch.full((3, 13, 4), 114 / 255))
