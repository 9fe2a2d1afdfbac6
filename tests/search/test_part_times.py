"""What is timed is counted right: a clock that the work itself turns stands in for the time."""

import torch

from autoprune.search import part_times
from autoprune.search.part_times import per_image, time_importance, timed

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Settings(dict):
    def model_copy(self, update):
        return Settings({**self, **update})

    @property
    def importance_images(self):
        return self["importance_images"]


def test_the_time_of_a_call_and_its_result(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(part_times, "time", clock)

    def work(seconds, factor=1):
        clock.now += seconds * factor
        return "done"

    assert timed(CPU, work, 2.0, factor=3) == ("done", 6.0)


def test_criteria_that_read_no_image_cost_nothing_for_one():
    assert per_image([]) == 0.0


def test_importance_costs_a_constant_and_in_each_pass_so_much_an_image(monkeypatch, tmp_path):
    """Two passes, of 2 s and 3 s an image in batches of 2, and 5 s for whatever number of images."""
    clock, counts = Clock(), []
    monkeypatch.setattr(part_times, "time", clock)

    def score_several(task, criteria, path):
        images = task.config.importance_images
        counts.append(images)
        for seconds in (2, 3):
            for start in range(0, images, 2):
                task.train.batch([start, start + 1], task.device)
                clock.now += 2 * seconds
        clock.now += 5
        return {"obs": {}}

    monkeypatch.setattr(part_times, "score_several", score_several)
    monkeypatch.setattr(part_times, "replace", lambda task, config, train: Task(config, train))
    scratch = type("Scratch", (), {"importance_file": tmp_path / "scores"})
    task = Task(Settings(importance_images=100), Images())
    scores, of_images, rest = time_importance(task, ["obs"], scratch)
    assert (scores, of_images, rest) == ({"obs": {}}, (2 + 3) * 100, 5)
    assert counts[0] < 10, "a few images are enough"


def test_a_pass_of_one_batch_says_nothing_of_an_image():
    assert per_image([(0.0, [4, 1, 2])]) == 0
    assert per_image([(0.0, [4, 1]), (3.0, [2])]) == 1.5


class Images:
    def __len__(self):
        return 1000

    def batch(self, indices, device):
        return [], []


class Task:
    def __init__(self, config, train):
        self.config, self.train, self.device = config, train, CPU
