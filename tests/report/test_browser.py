"""The page in headless Chromium: no errors, marks at the positions of their figures, and working controls.

Screenshots of a desktop, a phone and a print go to the test's folder, or to the folder that the variable
SCREENSHOTS names, for a person to look at.
"""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoprune.cli.main import main
from autoprune.report.entries import recovered_map, trial_entries
from autoprune.report.run_summary import read_run_summary

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def chromium() -> str | None:
    """The system's Chromium, else the one that playwright installed, else nothing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if installed := next(filter(None, map(shutil.which, names)), None):
        return installed
    with playwright.sync_playwright() as tool:
        downloaded = tool.chromium.executable_path
    return downloaded if Path(downloaded).is_file() else None


CHROMIUM = chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; install one (Debian: apt-get install chromium)"
)
PATIENCE_MS = 600_000  # a busy machine is slow, and that is no error of the page
DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}

CENTERS = """marks => marks.map(mark => {
    const box = mark.getBoundingClientRect();
    return [Number(mark.dataset.trial), mark.classList[1], box.x + box.width / 2, box.y + box.height / 2];
})"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(run), "--to", str(file)]) == 0
    return file


@pytest.fixture
def show(browser, page_file):
    """Opens the page; afterwards there was no error in a script, and nothing but the file was requested."""
    opened, problems, requests = [], [], []

    def show(file=page_file, **options):
        page = browser.new_context(**options).new_page()
        opened.append(page.context)
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for context in opened:
        context.close()
    assert not problems
    assert all(url.startswith(("file:", "data:")) for url in requests)


@pytest.fixture
def screenshots(tmp_path):
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def marks_of(page, chart="front-chart"):
    """(trial, kind, x, y) of each mark of a chart, in pixels of the window."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    marks = page.eval_on_selector_all(f"#{chart} .mark[data-trial]", CENTERS)
    return [(int(trial), kind, x, y) for trial, kind, x, y in marks]


def test_the_marks_of_the_front_lie_on_their_figures(run, show):
    trials, dense = trial_entries(read_run_summary(run).result)
    page = show(**DESKTOP)
    figures = {("dense", None): (dense.gflops, dense.map)}
    recovered = read_run_summary(run).recovered
    for trial in trials:
        number = int(trial.name.split()[1])
        figures[trial.kind, number] = (trial.gflops, trial.map)
    for number, metrics in recovered.items():
        figures["recovered", number] = (metrics["gflops"], recovered_map(metrics))
    places = {(kind, number): (x, y) for number, kind, x, y in marks_of(page)}
    assert places.keys() == figures.keys() - {("dense", None)}
    star = page.locator("#front-chart .mark.dense").first.bounding_box()
    places["dense", None] = (star["x"] + star["width"] / 2, star["y"] + star["height"] / 2)
    keys = [
        key for key in figures if key[0] not in ("one-shot", "dense")
    ]  # boxes of these have other centers
    for axis in (0, 1):
        values = np.array([figures[key][axis] for key in [*keys, ("dense", None)]])
        pixels = np.array([places[key][axis] for key in [*keys, ("dense", None)]])
        line = np.polyfit(values, pixels, 1)
        assert np.abs(np.polyval(line, values) - pixels).max() < 2.5, axis
        assert (line[0] > 0) == (axis == 0)  # mAP rises upwards


def test_pointing_at_a_mark_shows_its_trial(run, show):
    trials, _ = trial_entries(read_run_summary(run).result)
    page = show(**DESKTOP)
    page.click("#zoom-trials")
    marks = marks_of(page)
    far = {mark: min(np.hypot(mark[2] - o[2], mark[3] - o[3]) for o in marks if o != mark) for mark in marks}
    number, _, x, y = max(far, key=far.get)
    page.mouse.move(x, y)
    page.wait_for_selector("#tooltip:not([hidden])")
    tooltip = page.inner_text("#tooltip")
    trial = next(trial for trial in trials if trial.name == f"trial {number}")
    assert f"trial {number} ({trial.origin})" in tooltip
    assert f"{100 * trial.map:.1f}" in tooltip
    assert f"{trial.gflops:.3f}" in tooltip
    page.mouse.move(2, 2)
    assert page.locator("#tooltip").is_hidden()


def test_the_keyboard_steps_through_the_marks_and_selects_one(show):
    page = show(**DESKTOP)
    page.locator("#front-chart svg").focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#tooltip b")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tooltip b") != first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.inner_text("#layers-summary").startswith(first.removesuffix(", recovered"))


def test_zooming_in_and_back(show):
    page = show(**DESKTOP)
    before = marks_of(page)
    box = page.locator("#front-chart svg").bounding_box()
    left = min(x for _, _, x, _ in before) - 20
    page.mouse.move(left, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(left + 60, box["y"] + 140, steps=3)
    page.mouse.up()
    zoomed = marks_of(page)
    spread = {number: x for number, kind, x, _ in zoomed if kind != "recovered"}
    assert np.ptp(list(spread.values())) > 1.5 * np.ptp(
        [x for _, kind, x, _ in before if kind != "recovered"]
    )
    page.click("#zoom-in")
    page.dblclick("#front-chart svg", position={"x": 200, "y": 40})
    assert marks_of(page) == before


def test_selecting_a_trial_shows_its_widths(run, show):
    summary = read_run_summary(run)
    page = show(**DESKTOP)
    for record in summary.records[-2:]:
        page.locator(f"#trials tr[data-trial='{record.number}'] button").click()
        bars = page.locator("#layers-bars li")
        for place, group in enumerate(summary.groups):
            text = bars.nth(place).inner_text().replace("\n", " ")
            if record.number in summary.recovered:
                continue  # regrowth may have changed it
            kept = record.widths[group.name]
            fraction = bars.nth(place).locator("i").evaluate("bar => bar.style.width")
            assert group.name in text
            assert (f"all {kept}" if kept == group.width else f"{kept} of {group.width}") in text
            assert float(fraction.removesuffix("%")) == pytest.approx(100 * kept / group.width, abs=0.01)
        assert page.locator("#layers-trial").input_value() == str(record.number)


def test_tables_sort_by_the_heading_clicked(show):
    page = show(**DESKTOP)
    heading = page.locator("#trials-table th", has_text="GFLOPs")
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        column = heading.evaluate("cell => cell.cellIndex")
        values = page.eval_on_selector_all(
            "#trials-table tbody tr", f"rows => rows.map(row => Number(row.cells[{column}].dataset.value))"
        )
        assert values == sorted(values, reverse=direction == "descending")


def test_the_table_can_be_saved(run, show, tmp_path):
    page = show(**DESKTOP)
    with page.expect_download() as download:
        page.click("#save-csv")
    download.value.save_as(tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    maps = {record.number: record.metrics["map"] for record in read_run_summary(run).records}
    assert {int(row["trial"]): float(row["proxy mAP"]) for row in rows} == maps


def test_the_score_decides_which_boxes_count(run, show):
    summary = read_run_summary(run)
    page = show(**DESKTOP)
    best = page.evaluate("DATA.best")
    samples = json.loads((run / f"recovered/trial-{best:04d}/samples.json").read_text())["images"]
    assert summary.recovered[best]
    for least in (0.3, 0.9):
        page.locator("#score").fill(str(least))
        counts = page.locator(".samples .counts").all_inner_texts()
        names = page.locator(".samples figcaption b").all_inner_texts()
        assert names == ["dense", "pruned"] * len(samples)
        for place, text in enumerate(counts):
            image, name = samples[place // 2], names[place]
            correct, false, missed = (int(part.split()[0]) for part in text.split(", "))
            assert correct + false == sum(box["score"] >= least for box in image["found"][name])
            assert correct + missed == len(image["truth"])


@pytest.mark.parametrize(("name", "options"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_screenshots_fit_their_screen(name, options, show, screenshots):
    page = show(**options)
    assert page.evaluate("document.documentElement.scrollWidth") == options["viewport"]["width"]
    page.screenshot(path=screenshots / f"report_{name}.png", full_page=True)
    with Image.open(screenshots / f"report_{name}.png") as picture:
        assert picture.height > 3 * picture.width
        assert len(picture.convert("RGB").resize((200, 800)).getcolors(200 * 800)) > 100


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_labels_of_the_front_do_not_overlap(options, show):
    page = show(**options)
    boxes = page.eval_on_selector_all(
        "#front-chart text.strong",
        "all => all.map(text => { const box = text.getBoundingClientRect();"
        " return [box.left, box.top, box.right, box.bottom]; })",
    )
    assert len(boxes) == 3  # the budget, the selected trial, the dense detector
    for place, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = other[2] <= left or other[0] >= right or other[3] <= top + 1 or other[1] >= bottom - 1
            assert apart, boxes


def test_a_tap_on_a_phone_shows_the_trial(show):
    page = show(**PHONE)
    _, _, x, y = marks_of(page)[0]
    page.touchscreen.tap(x, y)
    assert page.inner_text("#tooltip b").startswith("trial ")
    assert page.inner_text("#layers-summary").startswith("trial ")


def test_print_is_light_and_has_everything_open(show, screenshots):
    page = show(**DESKTOP, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls").first.is_hidden()
    file = screenshots / "report_print.pdf"
    page.pdf(path=file, format="A4", print_background=False)
    assert file.read_bytes().count(b"/Type /Page\n") >= 2
    assert page.locator("#importance-charts svg").count() == page.evaluate("DATA.groups.length")


def test_an_unfinished_run_opens_without_errors(run, show, tmp_path):
    for number, names in enumerate((["study.journal", "policies", "front.csv"], [])):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*names, "recovered", "proxies.json"))
        file = copy / "report.html"
        assert main(["report", str(copy)]) == 0
        page = show(file, **DESKTOP)
        assert page.locator("#front-chart svg").count() == number
        assert page.locator("pre.command").count() == 1
