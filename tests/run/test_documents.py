"""Damaged JSON files: the line names the file, the key and the remedy, whichever command reads it."""

import json
import shutil

import pytest

from autoprune.cli.main import main
from autoprune.config import make_config
from autoprune.errors import RunError
from autoprune.files import write_yaml
from autoprune.recovery.proxy_check import CHECK
from autoprune.run.documents import LATENCIES, METRICS, SAMPLES, load_run_config, warn_elsewhere

DOCUMENTS = {
    "metrics.json": METRICS, "latency.json": LATENCIES, "samples.json": SAMPLES, "proxies.json": CHECK
}  # fmt: skip


@pytest.fixture
def run_copy(checked_run, tmp_path):
    return shutil.copytree(checked_run, tmp_path / "run")


def sources(run):
    return {name: next(iter(sorted(run.rglob(name)))) for name in DOCUMENTS}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_run_wrote_is_read_as_it_is(checked_run, name):
    file = sources(checked_run)[name]
    assert DOCUMENTS[name].read(file) == json.loads(file.read_text())


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "5", "null", '"x"', "\x00"])
def test_another_shape_is_refused_with_the_remedy(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(RunError, match=f"{name}.*; delete ") as caught:
        DOCUMENTS[name].read(file)
    assert "\n" not in str(caught.value)


def places(content, prefix=()):
    """The path of each value in a JSON document, first items of lists only."""
    items = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from places(value, (*prefix, key))


@pytest.mark.parametrize("name", ["metrics.json", "latency.json", "samples.json"])
def test_a_value_of_another_type_is_refused_where_it_is_needed(checked_run, tmp_path, name):
    text = sources(checked_run)[name].read_text()
    file = tmp_path / name
    refused = []
    for place in places(json.loads(text)):
        content = target = json.loads(text)
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = {"another": ["type"]}
        file.write_text(json.dumps(content))
        try:
            DOCUMENTS[name].read(file)
        except RunError:
            refused.append(".".join(map(str, place)))
    needed = {
        "metrics.json": {"metrics", "metrics.map", "gflops", "settings.steps", "dense.metrics.map", "images"},
        "latency.json": {"0.label", "0.median_ms", "0.p10_ms", "0.p90_ms", "0.dense_ms"},
        "samples.json": {"images", "images.0.file", "images.0.truth.0.box", "images.0.found.dense.0.score"},
    }
    assert needed[name] <= set(refused)


COMMANDS = {
    "metrics.json": [
        "front {run}",
        "report {run}",
        "export {run} --to {to}",
        "recover {run} --trial {trial}",
    ],
    "latency.json": ["report {run}", "export {folder} --to {to}", "latency {folder} --record"],
    "samples.json": ["report {run}"],
    "proxies.json": ["front {run}", "report {run}"],
}


NEEDED = {
    "metrics.json": "metrics",
    "latency.json": "p10_ms",
    "samples.json": "images",
    "proxies.json": "verdict",
}


def contents(run):
    """What commands must leave as it is; a first reading makes caches and pictures."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".json", ".md", ".html")}


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name in COMMANDS for command in COMMANDS[name]]
)
def test_commands_name_the_file_and_write_nothing(run_copy, tmp_path, capsys, name, command):
    for file in run_copy.rglob(name):
        content = json.loads(file.read_text())
        del (content[0] if name == "latency.json" else content)[NEEDED[name]]
        file.write_text(json.dumps(content))
    folder = sources(run_copy)[name].parent
    trial = folder.name.removeprefix("trial-").lstrip("0") or 0
    before = contents(run_copy)
    to = tmp_path / "exported"
    assert main(command.format(run=run_copy, to=to, folder=folder, trial=trial).split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line
    assert f"{NEEDED[name]}`: Field required; delete " in line
    assert not to.exists()
    assert contents(run_copy) == before


@pytest.mark.parametrize("text", ["", "step,loss\n1\n", "step,loss\n1,x\n", "a,b\n1,2\n"])
def test_damaged_losses_are_named(run_copy, capsys, text):
    file = next(run_copy.rglob("losses.csv"))
    file.write_text(text)
    code = main(["report", str(run_copy)])
    error = capsys.readouterr().err
    assert (code, str(file) in error) == (2, True) if text else (code, error) == (0, "")


@pytest.mark.parametrize("lines", [0, 1, 20, -1])
def test_a_cut_config_of_a_run_is_damage_and_no_defaults(tmp_path, lines):
    path = tmp_path / "config.yaml"
    write_yaml(path, make_config().model_dump(mode="json"))
    assert load_run_config(path) == make_config()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        load_run_config(path)


def test_settings_of_a_copied_run_say_where_the_work_is_done(run_copy, tmp_path, capsys):
    file = run_copy / "config.yaml"
    out = load_run_config(file).out
    with pytest.warns(
        UserWarning, match=rf"{file} has `out: {out}`, so the work is done there; --out {run_copy}"
    ):
        warn_elsewhere(file, out)
    warn_elsewhere(file, run_copy)
    (tmp_path / "config.yaml").write_text("")
    warn_elsewhere(tmp_path / "config.yaml", out)  # settings in no run directory
    assert main(["search", "--config", str(file), "--out", str(run_copy), "--seed", "9"]) == 2
    assert "warning" not in capsys.readouterr().err
    assert main(["search", "--config", str(file), "--seed", "9"]) == 2
    assert f"warning: {file} has `out: {out}`" in capsys.readouterr().err
