import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.errors import DataError
from autoprune.training import TrainSettings, train
from autoprune.training.batches import draw_batch, loaded_ahead


def test_every_epoch_shows_every_image_once() -> None:
    draws = [draw_batch(10, 4, step, 7) for step in range(10)]
    indices = [index for step, _ in draws for index in step]
    flips = [flip for _, step in draws for flip in step]
    epochs = [indices[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert 5 < sum(flips) < 35
    longer = draw_batch(3, 8, 0, 7).indices  # a batch of more images than there are
    assert sorted(longer[:3]) == sorted(longer[3:6]) == [0, 1, 2]
    assert len(longer) == 8


CPU = torch.device("cpu")


def batches(split: Any, settings: TrainSettings, start: int = 0) -> list[Any]:
    with loaded_ahead(split, settings, CPU, start) as loaded:
        return list(loaded)


def equal(first: Any, second: Any) -> bool:
    (images, targets), (others, their_targets) = first, second
    pairs = [*zip(images, others, strict=True)]
    pairs += [(a[n], b[n]) for a, b in zip(targets, their_targets, strict=True) for n in ("boxes", "labels")]
    return all(torch.equal(a, b) for a, b in pairs)


def test_what_is_loaded_ahead_is_what_each_step_draws(split: Any) -> None:
    settings = TrainSettings(7, batch_size=4, seed=3)
    loaded = batches(split, settings)
    assert len(loaded) == 7
    for step, batch in enumerate(loaded):
        draw = draw_batch(len(split), 4, step, 3)
        assert equal(batch, split.batch(draw.indices, CPU, draw.flips))


def test_augmentation_is_a_function_of_seed_and_step(split: Any) -> None:
    """So a training that resumes sees what it would have seen; and no image is changed twice alike."""
    settings = TrainSettings(6, batch_size=5, seed=3, augment=True)
    whole, resumed = batches(split, settings), batches(split, settings, start=4)
    assert all(equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert not equal(whole[0], batches(split, TrainSettings(6, batch_size=5, seed=3))[0])
    assert not equal(whole[0], batches(split, TrainSettings(6, batch_size=5, seed=4, augment=True))[0])
    images = [image for batch, _ in whole for image in batch]
    assert len({image.numpy().tobytes() for image in images}) == 30  # of ten, each three times
    assert all(image.shape == (3, 16, 16) and image.min() >= 0 and image.max() <= 1 for image in images)


def test_a_damaged_image_ends_the_training_in_one_line_at_its_step(
    toy: Any, split: Any, tmp_path: Path
) -> None:
    """Steps before it are done and kept, and no thread is left."""
    settings, seen = TrainSettings(5, batch_size=2, seed=1), []
    damaged = draw_batch(len(split), 2, 3, 1).indices[1]
    get = split.get

    def broken(index: int) -> Any:
        if index == damaged:
            raise DataError(f"cannot decode {index}.png: truncated; replace or remove it")
        return get(index)

    split.get = broken
    with pytest.raises(DataError, match=rf"^cannot decode {damaged}\.png: truncated; replace or remove it$"):
        train(toy, split, settings, CPU, after_step=lambda state: seen.append(state.step))
    assert seen == [1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
