from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from autoprune.errors import ModelError
from autoprune.vendors.transformers_families import FAMILIES, Family
from autoprune.vendors.transformers_transform import preprocessing_of, transform_of, with_size

from .transformers_models import SIZES, processor_of

IMAGES = ((80, 110), (120, 97), (64, 64), (33, 200), (200, 33), (64, 70), (97, 61))


def settings_of(family: str, **given: Any) -> dict[str, Any]:
    return preprocessing_of({"size": SIZES[family], **given}, FAMILIES[family], "the folder")


@pytest.mark.parametrize("family", ["detr", "rt_detr", "yolos", "rf_detr"])
@pytest.mark.parametrize("size", IMAGES)
def test_pixels_are_those_of_the_vendor(family: str, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = processor_of(family)(images=[image], return_tensors="pt")["pixel_values"][0]
    batch, _ = transform_of(settings_of(family))([image.float() / 255])
    assert batch.image_sizes == [tuple(wanted.shape[-2:])]
    torch.testing.assert_close(batch.tensors[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "size"), [("detr", (41, 74)), ("detr", (69, 42)), ("yolos", (40, 88)), ("yolos", (107, 40))]
)
def test_an_image_that_was_resized_before_is_not_resized_again(family: str, size: tuple[int, int]) -> None:
    """As data is before it is kept; rounding leaves the longer side of these a step below its limit."""
    transform = transform_of(settings_of(family))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = processor_of(family)(images=[image], return_tensors="pt")["pixel_values"][0]
    assert max(wanted.shape[-2:]) < SIZES[family]["longest_edge"]
    batch, _ = transform([transform.resize_pixels(image) / 255])
    assert batch.image_sizes == [transform.resized_size(size)] == [tuple(wanted.shape[-2:])]
    torch.testing.assert_close(batch.tensors[0], wanted, rtol=0, atol=1e-5)


def test_a_batch_is_padded_as_by_the_vendor() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in IMAGES[:2]
    ]
    wanted = processor_of("detr")(images=images, return_tensors="pt")
    batch, _ = transform_of(settings_of("detr"))([image.float() / 255 for image in images])
    torch.testing.assert_close(batch.tensors, wanted["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"do_resize": False, "do_pad": False},
    ],
)
def test_settings_of_the_values_are_heeded(given: dict[str, Any]) -> None:
    import transformers

    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = transformers.DetrImageProcessor(size=SIZES["detr"], **given)
    wanted = processor(images=[image], return_tensors="pt")["pixel_values"][0].float()
    batch, _ = transform_of(settings_of("detr", **given))([image.float() / 255])
    torch.testing.assert_close(batch.tensors[0], wanted, rtol=1e-5, atol=2e-5)


def test_what_a_folder_does_not_say_is_the_vendors_default() -> None:
    empty: dict[str, Any] = {}
    assert preprocessing_of(empty, FAMILIES["rt_detr"], "x")["size"] == {"height": 640, "width": 640}
    assert not preprocessing_of(empty, FAMILIES["rt_detr"], "x")["do_normalize"]
    detr = preprocessing_of(empty, FAMILIES["detr"], "x")
    assert detr["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    assert detr["do_normalize"]


@pytest.mark.parametrize("kind", ["DetrFeatureExtractor", "DetrImageProcessorFast", "DetrImageProcessorPil"])
def test_earlier_names_of_a_processor_are_known(kind: str) -> None:
    assert settings_of("yolos", image_processor_type=kind)["image_processor_type"] == "DetrImageProcessor"


def test_earlier_forms_of_a_size_are_known() -> None:
    settings = preprocessing_of({"size": 600, "max_size": 900}, FAMILIES["detr"], "x")
    assert settings["size"] == {"shortest_edge": 600, "longest_edge": 900}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "the image processor CLIPImageProcessor is none of"),
        ({"resample": 3}, "`resample` is 3, and only 2"),
        ({"pad_size": {"height": 99, "width": 99}}, "`pad_size` is not supported"),
        ({"size": {"max_height": 9, "max_width": 9}}, "give height and width, or shortest_edge"),
        ({"size": {"height": 0, "width": 9}}, "1 pixel at least"),
        ({"image_std": [0.0, 1.0, 1.0]}, "must be above 0"),
        ({"image_mean": [0.0]}, "image_mean must hold three"),
        ({"size": "large"}, "no valid settings of DetrImageProcessor"),
    ],
)
def test_what_can_not_be_done_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        settings_of("detr", **given)
    assert "\n" not in str(caught.value)


def test_a_user_sets_another_size() -> None:
    family: Family = FAMILIES["detr"]
    settings = preprocessing_of({}, family, "x")
    assert with_size(settings, {"size": 320})["size"] == {"height": 320, "width": 320}
    assert with_size(settings, {"size": [320, 640]})["size"] == {"height": 320, "width": 640}
    assert with_size(settings, {"min_size": 400})["size"] == {"shortest_edge": 400, "longest_edge": 666}
    both = with_size(settings, {"min_size": 400, "max_size": 500})["size"]
    assert both == {"shortest_edge": 400, "longest_edge": 500}
    with pytest.raises(ModelError, match="1 to 65536 pixels, not 'big'"):
        with_size(settings, {"size": "big"})
    with pytest.raises(ModelError, match="omit it, or min_size and max_size"):
        with_size(settings, {"size": 9, "min_size": 3})
    with pytest.raises(ModelError, match="max_size needs min_size"):
        with_size(settings, {"max_size": 3})
    stretching = preprocessing_of({}, FAMILIES["rt_detr"], "x")
    with pytest.raises(ModelError, match="min_size needs max_size"):
        with_size(stretching, {"min_size": 400})
