"""Full recovery of policies of a run, the dense detector as their teacher."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from numbers import Integral
from pathlib import Path
from typing import Any

from autoprune.config import make_config
from autoprune.data.evaluate import evaluate
from autoprune.errors import ConfigError, RunError
from autoprune.files import naming_paths
from autoprune.policy import Policy
from autoprune.progress import command_line, say
from autoprune.ranges import to_ranges
from autoprune.recovery.finished import Recovered
from autoprune.recovery.recover_policy import recover_policy
from autoprune.run.directory import RunDirectory
from autoprune.run.origin import SCORING, check_origin, check_settings
from autoprune.run.results import SearchResult, load_result
from autoprune.runtimes.sessions import need_runtime
from autoprune.space.file import SpaceFile
from autoprune.space.resolve import resolve
from autoprune.study.records import UNFINISHED, Record
from autoprune.task.checks import check_batch_size, refuse_missing
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels
from autoprune.training import distributed
from autoprune.validation import as_path


@distributed.process_group()
@naming_paths()
def recover(
    run: str | Path, trials: Sequence[int] | None = None, steps: int | None = None, **overrides: Any
) -> list[Recovered]:
    """Recovers policies of a run; those that are recovered already are not trained again.

    Started by `torchrun` on several processes, they share each batch; the result is the same for all.

    Args:
        run: the run directory.
        trials: numbers of trials; ``None`` takes the one on the front with the highest mAP.
        steps: optimizer steps; ``None`` takes the run's ``steps``.
        **overrides: fields of `Config` that say how to train, such as ``device`` or ``learning_rate``, and
            ``data`` and ``weights`` where these were moved.

    Raises:
        ConfigError: ``trials`` are no numbers, or the settings are wrong.
        RunError: it is not a run directory, it has no such trial, its weights or its data have changed, its
            space is lost, its `config.yaml` or the trial's policy file was changed, or another process
            recovers the same trial.
    """
    directory = RunDirectory(as_path("run", run, "the path of a run directory"))
    own = directory.config()
    changes = {name: value for name, value in {**overrides, "steps": steps}.items() if value is not None}
    config = make_config(**{**own.model_dump(), **changes})
    result = load_result(directory.path)
    records = _chosen(result, trials)
    if not directory.space_file.exists():
        raise RunError(
            f"{directory.space_file} is missing; the command of the search, repeated, writes it again"
        )
    check_settings(directory, result.notes, SCORING)
    refuse_missing(config)
    need_runtime(config.latency_runtime)
    task = load_task(config)
    check_origin(directory, result.notes, task)
    begun = all(directory.recovered_folder(record.number).exists() for record in records)
    if config.batch_size != own.batch_size and not begun:  # version 0.1.0 took larger batches
        check_batch_size(config.batch_size, len(task.train))
    importance = score_channels(task, config.criterion, directory.importance_file)
    space = resolve(SpaceFile.load(directory.space_file), task.graph, importance)
    evaluator = PolicyEvaluator(task, space, importance, result.dense.get("latency_ms"))
    # not before the first recovery has its lock, and not where all are finished
    dense = cache(partial(evaluate, task.model, task.val, task.device, batch_size=config.batch_size))
    return [
        recover_policy(
            task.at(record.pixels),
            _keep(result, record, evaluator),
            directory.recovered_folder(record.number),
            importance,
            dense,
            label=f"recovery of trial {record.number}",
            notes={"trial": record.number, "origin": record.origin},
            space=replace(space, graph=task.at(record.pixels).graph),
            full_size=task,
        )
        for record in records
    ]


def _keep(result: SearchResult, record: Record, evaluator: PolicyEvaluator) -> Mapping[str, Sequence[int]]:
    """The kept channels of a trial: those of its policy file where it has one, as all on the front do."""
    point = next((point for point in result.front if point.trial == record.number), None)
    if point is None:
        return evaluator.keep(record.widths)
    if not point.path.exists():
        say(f"{point.path} is missing: the channels are chosen again, by the trial's widths")
        return evaluator.keep(record.widths)
    chosen = evaluator.task.at(record.pixels).policy(evaluator.keep(record.widths), {})
    if problem := _change(point.policy, chosen):
        raise RunError(
            f"{point.path} was changed: {problem}; delete the file, and the channels are chosen again, or "
            "copy it elsewhere and `autoprune apply` it as a policy of its own"
        )
    if point.policy.keep != chosen.keep:
        say(
            f"{point.path} keeps other channels than today's scores choose, equally many: those are recovered"
        )
    return point.policy.keep


def _change(written: Policy, trial: Policy) -> str:
    """In what a policy file differs from its trial, in words; empty where it does not.

    Of channels the numbers are compared, as the study holds them: where scores were computed again, a group
    may keep others.
    """
    for name in (*trial.widths, *(name for name in written.widths if name not in trial.widths)):
        dense = trial.widths.get(name, written.widths.get(name))
        widths = [each.widths.get(name, dense) for each in (written, trial)]
        kept = [len(each.keep[name]) if name in each.keep else dense for each in (written, trial)]
        for what, (now, was) in (("channels before pruning", widths), ("channels after it", kept)):
            if now != was:
                return f"group `{name}` has {now} {what}, and the trial was measured with {was}"
    if (written.input_size, written.resize) != (trial.input_size, trial.resize):
        return f"its input size is {_size(written)}, and the trial was measured at {_size(trial)}"
    if written.labels and trial.labels and written.labels != trial.labels:
        of_file, of_trial = written.labels, trial.labels
        label = next(n for n in (*of_file, *of_trial) if of_file.get(n) != of_trial.get(n))
        names = (each.get(label, "nothing") for each in (of_file, of_trial))
        return "label {} stands for {}, and the trial was measured with {}".format(label, *names)
    return ""


def _size(policy: Policy) -> str:
    """The input size of a policy, and how it resizes images to it where it changes that."""
    height, width = policy.input_size
    rule = "" if policy.resize is None else ", ".join(f"{n} {v}" for n, v in policy.resize.to_dict().items())
    return f"{height} x {width} ({rule})" if rule else f"{height} x {width}"


def _chosen(result: SearchResult, trials: Sequence[int] | None) -> list[Record]:
    """The records of these trials, or of the one on the front with the highest mAP.

    Raises:
        ConfigError: ``trials`` are no numbers.
        RunError: there is no such trial, it was measured on other data, or the front is empty.
    """
    finished = (record for record in result.records if record.state not in UNFINISHED)
    records = {record.number: record for record in finished if record.widths}
    if trials is None:
        return [records[_best(result)]]
    numbers: list[Any] = list(trials) if isinstance(trials, Iterable) else []
    if not numbers or not all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers):
        raise ConfigError(f"trials must be a list of numbers such as [3, 5], not {trials!r}")
    if absent := [number for number in numbers if number not in records]:
        known = f"only {to_ranges(sorted(records))}" if records else "none yet"
        raise RunError(
            f"{result.run} has no finished trial {absent[0]}, {known}; "
            f"`{command_line('front', result.run, '--all')}` lists those that are complete"
        )
    if other := [number for number in numbers if records[number].other_data]:
        raise RunError(
            f"trial {other[0]} of {result.run} was measured on other data than the run has now; choose "
            "another trial, or search on that data with another --out"
        )
    return [records[number] for number in numbers]


def _best(result: SearchResult) -> int:
    """The trial on the front with the highest mAP.

    Raises:
        RunError: the front is empty.
    """
    if result.best is None:
        reasons = f": {result.failed[0].reason}" if result.failed else ""
        raise RunError(
            f"{result.run} has nothing on its front yet{reasons}; let the search finish some trials"
        )
    return result.best.trial
