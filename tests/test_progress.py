import io
import shlex

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


def test_what_earlier_work_did_is_counted_and_not_timed(monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=False)):
        assert list(progress.track([3, 4], "curves", total=4, done=2)) == [3, 4]
    assert out.getvalue().splitlines() == ["curves: 3/4, 20 s left", "curves: 4/4, 0 s left"]


def test_terminal_shows_a_bar_and_hides_nested_ones():
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=True, width=80)):
        outer = list(progress.track([list(progress.track([1], "inner"))], "outer"))
    assert outer == [[1]]
    assert "outer" in out.getvalue()


def test_a_bar_lets_through_only_the_lines_that_go_above_it():
    out, inner = io.StringIO(), io.StringIO()
    with progress.show(Console(file=out, force_terminal=True, width=80)):
        for _ in progress.track([1], "outer"):
            progress.say("an important line", above_bar=True)
            progress.say("a plain line")
            with progress.show(None):
                progress.say("a silenced line", above_bar=True)
            with progress.show(Console(file=inner)):
                progress.say("another listener's", above_bar=True)
        progress.say("after it", above_bar=True)
    shown = out.getvalue()
    assert "an important line" in shown
    assert "after it" in shown
    assert not any(hidden in shown for hidden in ("a plain line", "a silenced line", "another listener's"))
    assert inner.getvalue() == "another listener's\n"


def test_lines_are_printed_verbatim_unless_they_are_markup():
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=False)):
        progress.say("a [bold]b[/bold] c")
        progress.say("a [bold]b[/bold] c", markup=True)
    assert out.getvalue().splitlines() == ["a [bold]b[/bold] c", "a b c"]


def test_an_inner_listener_replaces_the_outer_one_for_the_block_only():
    outer, inner = io.StringIO(), io.StringIO()
    with progress.show(Console(file=outer)):
        with progress.show(Console(file=inner)):
            progress.say("inner")
        with progress.show(None):
            progress.say("nobody")
        progress.say("outer")
    assert (outer.getvalue(), inner.getvalue()) == ("outer\n", "inner\n")


def test_items_without_a_length_have_no_time_left(monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=False)):
        assert list(progress.track(iter("ab"), "reading")) == ["a", "b"]
    assert out.getvalue().splitlines() == ["reading: 1/?", "reading: 2/?"]


def test_a_status_is_one_line_a_minute_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=False)), progress.StatusDisplay() as status:
        for now[0] in (10.0, 59.0, 60.0, 90.0, 121.0):
            status.show([f"at   {now[0]:.0f} s", "[2/4] trials"])
    assert out.getvalue().splitlines() == ["at 60 s; [2/4] trials", "at 121 s; [2/4] trials"]


def test_a_status_on_a_terminal_shows_its_last_lines_verbatim():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with progress.show(console), progress.StatusDisplay() as status:
        status.show(["first"])
        status.show(["[2/4] trials"])
        status._live.refresh()
    assert "[2/4] trials" in out.getvalue()
    assert "first" not in out.getvalue().split("[2/4] trials")[-1]


def test_one_thing_has_no_plural():
    counts = [progress.count_of(count, "trial") for count in (0, 1, 2)]
    assert counts == ["0 trials", "1 trial", "2 trials"]
    assert [progress.count_of(count, "box", "boxes") for count in (1, 2)] == ["1 box", "2 boxes"]


def test_a_command_can_be_pasted_into_a_shell():
    words = ["recover", "runs/it's my [run] $1", "--trial", 3]
    assert shlex.split(progress.command_line(*words)) == ["autoprune", *map(str, words)]
