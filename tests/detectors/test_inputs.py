from autoprune import detectors

from .conftest import small


def test_detector_inputs_fit_the_call():
    model = small().eval()
    (images,) = detectors.detector_inputs((48, 64))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)]
    assert isinstance(model(images), list)
