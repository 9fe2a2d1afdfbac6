from autoprune.training.batches import draw_batch


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
