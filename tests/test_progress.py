import io

from rich.console import Console

from autoprune import progress


def test_items_come_through_unchanged_and_silent_without_a_listener(capsys):
    assert list(progress.track(iter(range(5)), "work")) == [0, 1, 2, 3, 4]
    progress.say("nothing")
    assert capsys.readouterr() == ("", "")


def test_plain_lines_give_done_total_and_time_left(monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=False)):
        assert list(progress.track([1, 2], "recovery")) == [1, 2]
    assert out.getvalue().splitlines() == ["recovery: 1/2, 20 s left", "recovery: 2/2, 0 s left"]


def test_terminal_shows_a_bar_and_hides_nested_ones():
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=True, width=80)):
        outer = list(progress.track([list(progress.track([1], "inner"))], "outer"))
    assert outer == [[1]]
    assert "outer" in out.getvalue()
