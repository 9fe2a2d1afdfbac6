"""Files that the version before wrote: a run directory, a study, policies, a recovered detector.

`earlier_version/` holds a search that finished, with the check of its proxies, and one that was killed in the
middle. The word FOLDER in the files stands for the folder that each test copies them to.
"""

import csv
import json
import shutil
import sys
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileBackend
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cli.main import main
from autoprune.config import RENAMED, Config, load_config
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import detector_inputs, load_dense, load_state
from autoprune.export import load
from autoprune.files import read_yaml
from autoprune.graph import analyze, mask
from autoprune.policy import Policy
from autoprune.recovery.proxy_check import load_check
from autoprune.recovery.recover import recover
from autoprune.run.documents import ADDED
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.task.pruning_task import load_task

EARLIER = Path(__file__).parent / "earlier_version"
SIZE = (64, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data that the earlier version's files were made from."""
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", seed=3, train=48, val=8, size=64)


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    """All of the earlier version's files, with the data that they were made from."""
    monkeypatch.syspath_prepend(EARLIER)
    monkeypatch.setenv("AUTOPRUNE_TRUST", "earlier_detector:small_retinanet")
    for file in EARLIER.rglob("*"):
        copied = tmp_path / file.relative_to(EARLIER)
        if file.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            is_text = file.suffix in (".yaml", ".journal", ".json", ".md", ".csv")
            copied.write_bytes(content.replace(b"FOLDER", str(tmp_path).encode()) if is_text else content)
    shutil.copytree(data, tmp_path / "data")
    yield tmp_path
    sys.modules.pop("earlier_detector", None)


def raw_trials(run):
    """The trials as Optuna itself reads them."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(run / "study.journal")))
    return optuna.load_study(storage=storage, study_name="autoprune").get_trials()


def rows_of(run):
    with (run / "front.csv").open() as file:
        return list(csv.DictReader(file))


def dense_detector(folder):
    model, _ = load_dense(
        "earlier_detector:small_retinanet", {}, 6, weights=str(folder / "dense.safetensors")
    )
    return model


def gflops_of(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*detector_inputs(SIZE))
    return counter.get_total_flops() / 2e9


def head_outputs(model, images):
    with torch.no_grad():
        batch = model.transform(images)[0].tensors
        return model.head(list(model.backbone(batch).values()))


def test_a_killed_search_is_resumed(folder):
    run = folder / "killed"
    before = raw_trials(run)
    finished = [trial for trial in before if trial.state.is_finished()]
    in_flight = [trial for trial in before if trial.state.name == "RUNNING"]
    assert finished
    assert in_flight
    result = search(load_config(run / "config.yaml", trials=7))
    after = raw_trials(run)
    for trial in finished:
        now = after[trial.number]
        assert (now.state, now.values, now.user_attrs) == (trial.state, trial.values, trial.user_attrs)
    assert not [trial for trial in after if trial.state.name in ("RUNNING", "WAITING")]
    counted = [record for record in result.records if record.counts]
    assert len(counted) == 7
    assert "sampler" in [record.origin for record in counted]
    assert [r.state for r in counted if r.state not in ("complete", "stopped")] == []
    policies = [tuple(sorted(record.widths.items())) for record in counted]
    assert len(set(policies)) == 7
    for trial in in_flight:  # what was in flight is run first, under another number
        assert trial.user_attrs["widths"] in [record.widths for record in counted]
    rows = {int(row["trial"]): row for row in rows_of(run)}
    assert rows.keys() == {point.trial for point in result.front}
    dense = dense_detector(folder)
    for point in result.front:
        assert gflops_of(point.policy.apply(dense)) == pytest.approx(
            float(rows[point.trial]["gflops"]), abs=1e-12
        )


FLAGS = (
    "search --model earlier_detector:small_retinanet --weights {0}/dense.safetensors --data {0}/data "
    "--device cpu --threads 1 --budget-gflops 70%,50% --importance-images 4 --trials 8 --rungs 0,2 "
    "--batch-size 4 --reconstruct-images 4 --recalibration-images 4 --steps 4 --track none --out {0}/killed"
)
"""The command that began the killed search, when the defaults were a rate of 3e-4, clipped at 10."""


def test_the_command_that_began_a_search_resumes_it_with_the_defaults_of_then(folder, capsys, monkeypatch):
    rates, norms = set(), set()
    step, clip = torch.optim.AdamW.step, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: (rates.update(group["lr"] for group in self.param_groups), step(self)),
    )
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda tensors, norm: (norms.add(norm), clip(tensors, norm))[1]
    )
    assert main([*FLAGS.format(folder).split(), "--trials", "5"]) == 0
    printed = capsys.readouterr().out
    settings = "criterion 'joint', curves False, detection_precision 'float32', learning_rate 0.0003"
    settings += ", clip_norm 10.0, distill_head False"
    assert f"killed keeps its own {settings}; for other" in " ".join(printed.split())
    assert norms == {10.0}
    assert max(rates) == 3e-4
    records = [record for record in load_result(folder / "killed").records if record.counts]
    assert len(records) == 5
    assert {record.state for record in records} <= {"complete", "stopped"}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--clip-norm 1", "clip_norm was 10.0, now 1.0"),
        ("--learning-rate 0.001", "learning_rate was 0.0003, now 0.001"),
        ("--seed 1", "seed was 0, now 1"),
    ],
)
def test_another_value_that_is_given_is_another_search(folder, capsys, flags, problem):
    journal = (folder / "killed" / "study.journal").read_bytes()
    assert main([*FLAGS.format(folder).split(), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert f"another configuration: {problem}; choose another --out" in error
    assert (folder / "killed" / "study.journal").read_bytes() == journal


def test_a_finished_search_is_read_as_its_files_say(folder):
    run = folder / "finished"
    text = (run / "front.csv").read_text()
    result = load_result(run)
    rows = rows_of(run)
    assert [point.trial for point in result.front] == [int(row["trial"]) for row in rows]
    for point, row in zip(result.front, rows, strict=True):
        assert {name: repr(point.metrics[name]) for name in ("map", "map50", "gflops", "mparams")} == {
            name: row[name] for name in ("map", "map50", "gflops", "mparams")
        }
        assert point.origin == row["origin"]
    check, written = load_check(run), json.loads((run / "proxies.json").read_text())
    assert check.verdict == written["verdict"]
    assert [agreement.spearman.value for agreement in check.agreements] == [
        agreement["spearman"]["value"] for agreement in written["agreements"]
    ]
    assert (run / "front.csv").read_text() == text


def contents(run):
    """What `front.csv` and the policies hold, without the comments at their heads."""
    return {
        path.name: [line for line in path.read_text().splitlines() if not line.startswith("#")]
        for path in (run / "front.csv", *(run / "policies").iterdir())
    }


def test_the_same_command_changes_nothing(folder):
    run = folder / "finished"
    written, trials = contents(run), raw_trials(run)
    search(load_config(run / "config.yaml"))
    assert contents(run) == written
    assert raw_trials(run) == trials


@pytest.mark.parametrize("name", ["finished", "killed"])
def test_each_setting_is_read_as_it_was_written(folder, name):
    """Under its name of then; a name that changed must warn, which is an error in tests without this."""
    written = read_yaml(folder / name / "config.yaml")
    with warnings.catch_warnings(record=True) as caught:
        config = load_config(folder / name / "config.yaml").model_dump(mode="json")
    renamed = {RENAMED.get(key, key): value for key, value in written.items()}
    defaults = Config().model_dump(mode="json")
    assert config == {**{key: defaults[key] for key in ADDED}, **renamed}
    assert len(caught) == len(written.keys() & RENAMED.keys())


def test_a_finished_search_is_extended(folder):
    run = folder / "finished"
    before = raw_trials(run)
    counted = sum(record.counts for record in load_result(run).records)
    result = search(load_config(run / "config.yaml", trials=counted + 2, check_proxies=0))
    assert raw_trials(run)[: len(before)] == before
    records = [record for record in result.records if record.counts]
    assert len(records) == counted + 2
    assert all(record.metrics["gflops"] <= record.budget for record in records)


@pytest.mark.parametrize("trial", [1, 2, 3, 5, 7])
def test_policies_prune_to_what_they_say(folder, trial):
    policy = Policy.load(folder / "finished" / "policies" / f"trial-{trial:04d}.yaml")
    content = read_yaml(EARLIER / "finished" / "policies" / f"trial-{trial:04d}.yaml")
    dense = dense_detector(folder)
    pruned = policy.apply(dense)
    assert gflops_of(pruned) == pytest.approx(content["metrics"]["gflops"], abs=1e-12)
    assert sum(p.numel() for p in pruned.parameters()) / 1e6 == content["metrics"]["mparams"]
    kept = {}
    for name, group in content["groups"].items():
        ranges = [part.split("-") for part in str(group["keep"]).split(",")]
        kept[name] = [i for ends in ranges for i in range(int(ends[0]), int(ends[-1]) + 1)]
    masked = mask(dense, analyze(dense, detector_inputs(SIZE)), kept)
    images = [torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    ours, theirs = head_outputs(pruned, images), head_outputs(masked, images)
    for name, output in ours.items():
        assert float((output - theirs[name]).abs().max()) <= 1e-5 * float(theirs[name].abs().max())


def test_a_recovered_detector_has_the_map_it_was_written_with(folder):
    recovered = folder / "finished" / "recovered" / "trial-0002"
    metrics = json.loads((recovered / "metrics.json").read_text())
    task = load_task(load_config(folder / "finished" / "config.yaml"))
    model = load(recovered)
    assert evaluate(model, task.val, batch_size=4).map == pytest.approx(metrics["metrics"]["map"], abs=1e-6)
    assert gflops_of(model) == pytest.approx(metrics["gflops"], abs=1e-12)
    written = load_state(recovered / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in written.items() if name in state)


def test_a_recovery_is_not_repeated_and_another_trial_is_recovered(folder, monkeypatch):
    run = folder / "finished"
    metrics = json.loads((run / "recovered" / "trial-0002" / "metrics.json").read_text())
    (finished,) = recover(run, trials=[2])
    assert finished.metrics == metrics
    (other,) = recover(run, trials=[1])
    policy = read_yaml(run / "policies" / "trial-0001.yaml")
    assert other.metrics["gflops"] == policy["metrics"]["gflops"]
    assert gflops_of(load(other.folder)) == pytest.approx(policy["metrics"]["gflops"], abs=1e-12)


def test_commands_read_it(folder, capsys):
    run = folder / "finished"
    assert main(["front", str(run)]) == 0
    printed = capsys.readouterr().out
    for row in rows_of(run):
        assert f"{100 * float(row['map']):.1f}" in printed
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    capsys.readouterr()
    policy, weights = run / "policies" / "trial-0003.yaml", folder / "dense.safetensors"
    assert main(["apply", str(policy), "--weights", str(weights), "--to", str(folder / "applied")]) == 0
    applied = load(folder / "applied")
    assert gflops_of(applied) == pytest.approx(read_yaml(policy)["metrics"]["gflops"], abs=1e-12)


def test_eval_finds_the_labels_that_it_did_not_store(folder, capsys):
    recovered = folder / "finished" / "recovered" / "trial-0002"
    metrics = json.loads((recovered / "metrics.json").read_text())
    assert main(["eval", str(recovered), "--data", str(folder / "data"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"]["map"] == pytest.approx(metrics["metrics"]["map"], abs=1e-6)
    policy, weights = folder / "finished" / "policies" / "trial-0003.yaml", folder / "dense.safetensors"
    arguments = ["--weights", str(weights), "--data", str(folder / "data"), "--json"]
    assert main(["eval", str(policy), *arguments]) == 0
    pruned = Policy.load(policy).apply(dense_detector(folder))
    val = load_task(load_config(folder / "finished" / "config.yaml")).val
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"]["map"] == pytest.approx(evaluate(pruned, val, batch_size=8).map, abs=1e-6)
