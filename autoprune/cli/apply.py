"""`autoprune apply`: prunes the dense weights by a policy, without recovery."""

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli.detectors import build_dense, resolve
from autoprune.cli.export import check_read_back, refuse_existing
from autoprune.cli.settings import ANY_DATA, with_config
from autoprune.cli.terminal import output, tell
from autoprune.config import Config
from autoprune.errors import ConfigError
from autoprune.progress import command_line


@with_config("weights", "weights_key", described={"weights": "none, for a policy holds no weights"})
def apply(
    config: Config,
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy file, or a folder with one.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write; it must not exist.")],
) -> None:
    """Prune dense weights by a policy, without recovery; writes policy.yaml and model.safetensors.

    The mAP of the result is low until it is fine-tuned: `autoprune recover` prunes and fine-tunes.
    """
    from dataclasses import replace

    from autoprune.data.labels import describe
    from autoprune.detectors.class_names import names_in, renamed
    from autoprune.export import save_detector
    from autoprune.export.folder import graph_of
    from autoprune.files import new_folder
    from autoprune.policy import hash_weights

    detector = resolve(str(policy) if policy.exists() else f"{policy.parent}/{policy.name}", config)
    if detector.policy is None:
        raise ConfigError(f"{policy} is not a policy file; give a policy.yaml that autoprune wrote")
    if config.weights is None:
        raise ConfigError(
            "a policy holds no weights: give the dense ones with --weights FILE (YAML: weights)"
        )
    refuse_existing(to)
    dense, _ = build_dense(detector, config)
    graph = graph_of(dense, detector.policy)
    checked = detector.policy.with_costs(graph, policy)
    pruned = checked.apply(dense, graph)
    applied = hash_weights(dense.state_dict())
    # the policy's mAP was measured after a recovery, which these weights have not had
    costs = {name: value for name, value in checked.metrics.items() if name in ("gflops", "mparams")}
    made = replace(checked, weights_sha256=applied, metrics=costs)
    if applied != checked.weights_sha256:  # other weights may have the same classes in another order
        carried = names_in(config.weights, made.model.name, made.model.num_classes)
        made = replace(made, labels=renamed(made.labels, carried))
    with new_folder(to) as folder:
        save_detector(folder, pruned, made)
        same = check_read_back(
            pruned, folder, detector.policy.input_size, f"{policy} on {config.weights}", to
        )
    console = output()
    tell(console, f"wrote {to}: pruned by {policy}, not recovered")
    if checked.labels and made.labels != checked.labels:
        own, other = describe(made.labels), describe(checked.labels)
        tell(console, f"labels: {own}, as {config.weights} names them; the policy is of {other}")
    tell(console, same)
    tell(console, f"next: {command_line('eval', to, *ANY_DATA)}")
