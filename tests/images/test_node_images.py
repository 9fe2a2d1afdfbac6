"""One file of pixels, opened several times as by several processes, one of which is killed."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.images import node_images as module
from autoprune.images.node_images import NodeImages, node_images

SIZES = [(4, 6), (3, 5), (7, 2)]


def image(index: int) -> torch.Tensor:
    height, width = SIZES[index]
    return torch.arange(3 * height * width).view(3, height, width).add(index).to(torch.uint8)


def opened(folder: Path, scope: str = "a") -> NodeImages:
    images = node_images(scope, SIZES, 10**6, folder)
    assert images is not None
    return images


def test_what_one_process_decodes_the_others_have(tmp_path: Path) -> None:
    first, second, other = opened(tmp_path), opened(tmp_path), opened(tmp_path, "another run")
    first.put(2, image(2))
    second.put(0, image(0))
    for images in (first, second):
        assert images.get(1) is None
        for index in (0, 2):
            kept = images.get(index)
            assert kept is not None
            assert torch.equal(kept, image(index))
    assert other.get(0) is None
    assert len(list(tmp_path.iterdir())) == 2


def test_the_last_one_removes_the_file(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.put(0, image(0))
    kept = first.get(0)
    first.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert second.get(0) is not None
    second.close()
    assert list(tmp_path.iterdir()) == []
    assert kept is not None
    assert torch.equal(kept, image(0)), "a batch may still hold it"
    assert opened(tmp_path).get(0) is None


def hold(folder: Path, ready: Any) -> None:
    images = opened(folder, "killed")
    images.put(1, image(1))
    ready.set()
    signal.pause()


def test_another_process_has_them_too_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(120)
    mine = opened(tmp_path, "killed")
    kept = mine.get(1)
    assert kept is not None
    assert torch.equal(kept, image(1))
    mine.close()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (left,) = tmp_path.iterdir()
    other = opened(tmp_path, "later")
    assert not left.exists()
    other.close()


def test_above_the_limit_without_room_or_in_anothers_folder_each_decodes_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = 3 * sum(height * width for height, width in SIZES)
    assert node_images("a", SIZES, pixels - 1, tmp_path) is None
    assert node_images("a", SIZES, pixels, tmp_path) is not None
    lines = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    with progress.show(lines):
        monkeypatch.setattr(module, "LEAST_FREE", 10**15)
        assert node_images("b", SIZES, pixels, tmp_path) is None
        monkeypatch.setattr(module.os, "getuid", lambda: -7)
        assert node_images("c", SIZES, pixels, tmp_path) is None
    lines.file.close()
    no_room, not_ours = lines.export_text().splitlines()
    assert "each worker decodes all images for itself: the disk of" in no_room
    assert not_ours.endswith("is another user's")
    assert list(tmp_path.iterdir()) == [], "a file without room is not left"
