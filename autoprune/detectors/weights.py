"""Loads and saves weights: files, torchvision's weight names, class heads for other data sets."""

from collections.abc import Collection, Mapping
from os.path import exists  # which takes a name that is too long for one of no file
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models import detection, get_model_weights, get_weight, list_models

from autoprune.checkpoints.differences import differences
from autoprune.checkpoints.prefixes import State, is_counter
from autoprune.checkpoints.read import read_checkpoint
from autoprune.checkpoints.state_dicts import plain_state, state_for
from autoprune.checkpoints.write import write_tensors
from autoprune.config import ModelSpec
from autoprune.detectors.class_heads import class_axes, head_classes, refuse_other_heads
from autoprune.detectors.factories import build, norm_of, outline, with_norm, with_tensors
from autoprune.detectors.variances import refuse_bad_variances
from autoprune.errors import ModelError
from autoprune.fields import NormKind, is_vendor
from autoprune.progress import say, show
from autoprune.validation import as_path, check_kind, first_problem
from autoprune.vendors import PREFIX, VendorDetector, described, vendor_of

DEFAULT_CLASSES = 91
"""Classes of torchvision's weights: COCO's labels, background included."""
ZERO_EPS_WEIGHTS = frozenset(
    f"{model}_ResNet50_FPN_Weights.COCO_V1"
    for model in ("FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet")
)
"""Weights whose norms torchvision runs with an epsilon of 0 (`overwrite_eps` in its builders)."""


def load_dense(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    norm: Literal["auto"] | NormKind = "auto",
    weights: str | Path | None = None,
    seed: int = 0,
    weights_key: str | None = None,
    fresh_head: bool = True,
) -> tuple[nn.Module, ModelSpec]:
    """Builds a detector and loads its weights.

    Args:
        name: see `ModelSpec.name`.
        arguments: keyword arguments of the builder.
        num_classes: background included; ``None`` takes the number of the weights, or COCO's 91.
        norm: kind of the backbone's norms; weights trained with either kind can be loaded, as the conversion
            changes no output. ``auto`` takes ``frozen`` for weights that hold no ``num_batches_tracked``.
        weights: a checkpoint (see `state_for`), or a torchvision weight name; ``None`` keeps fresh weights,
            also where ``name`` is a checkpoint of a library: that gives the architecture, this the weights.
        seed: of fresh weights; a class head keeps them if its number of classes differs from the weights'.
        weights_key: of a checkpoint with several sets of weights, the one to take, such as ``model_ema``.
        fresh_head: whether a class head may stay fresh where ``num_classes`` is not that of the weights.

    Returns:
        The detector, in eval mode on the CPU, and the specification from which `build` makes it.

    Raises:
        ModelError: an argument is wrong, the model can't be built, or the weights can't be read, hold values
            that are not finite or belong to another architecture.
    """
    arguments = {} if arguments is None else arguments
    check_kind("arguments", arguments, Mapping, "a dict of keyword arguments of the builder", ModelError)
    of_vendor = isinstance(name, str) and is_vendor(name)
    description = described(name, arguments)[1] if of_vendor else None  # what is no model has no weights
    content = entry = None
    if weights is not None:
        instead = "a .safetensors or .pt file, or a name of torchvision's weights"
        content, entry = _read_weights(str(as_path("weights", weights, instead, ModelError)), name)
    elif weights_key is not None:
        raise ModelError(
            f"weights_key {weights_key!r} does nothing without weights; omit it, or give weights"
        )
    given_classes = num_classes
    if description is not None:
        library, _, source = name.partition(":")
        name, arguments = f"{library}:{Path(source).name}", description.arguments
        num_classes = description.num_classes if num_classes is None else num_classes
    try:
        spec = ModelSpec(
            name=name,
            arguments=dict(arguments),
            num_classes=DEFAULT_CLASSES if num_classes is None else num_classes,
            norm="batch" if norm == "auto" else norm,
        )
    except ValidationError as error:
        raise ModelError(first_problem(error, ModelSpec, "load_dense")) from error
    if is_vendor(spec.name) and norm == "auto":  # as the vendor makes them, whatever its weights hold
        model = build(spec, seed, as_made=True)
        norm = norm_of(model)
        spec = spec.model_copy(update={"norm": norm})
    else:
        model = build(spec, seed) if weights is None else outline(spec, seed)  # until classes are known
    if weights is None:
        return model.eval(), spec
    state = state_of(model, content, str(weights), weights_key)
    if entry is not None and str(entry) in ZERO_EPS_WEIGHTS:
        state = _absorb_zero_eps(state)
    if norm == "auto" and _norm_of(state) == "frozen":
        spec, model = spec.model_copy(update={"norm": "frozen"}), with_norm(model, "frozen")
    heads = _heads(spec, model, state, str(weights))
    inferred = _classes_of(heads, spec, state, seed)
    reshaped = given_classes is None and inferred != spec.num_classes
    if reshaped:
        spec = spec.model_copy(update={"num_classes": inferred})
    if reshaped or any(tensor.is_meta for tensor in model.parameters()):
        with show(None):  # it was said before what `build` says
            model = build(spec, seed)
    if given_classes is None or not fresh_head:
        refuse_other_heads(heads, model.state_dict(), state, str(weights), spec.num_classes)
    _fill(model, spec, state, str(weights), heads)
    return model.eval(), spec


def state_of(model: nn.Module, content: Any, where: str, key: str | None = None) -> State:
    """The weights in ``content`` by the model's names; a vendor's files hold the names of its own module.

    See `state_for`.
    """
    prefix, averages_first = (
        (PREFIX, model.averages_first) if isinstance(model, VendorDetector) else ("", False)
    )
    own = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    state = state_for(own, content, where, key, averages_first)
    return {prefix + name: tensor for name, tensor in state.items()}


def load_state(path: Path) -> State:
    """Reads the state dict of a file, whatever model it is of; floating-point numbers become float32.

    Raises:
        ModelError: the file can't be read (`read_checkpoint`), or holds more than tensors (`plain_state`).
    """
    return plain_state(read_checkpoint(path), str(path))


def save_state(
    model: nn.Module | Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights as safetensors, atomically.

    Args:
        model: a model, or its state dict.
        path: file to write.
        dtype: type of the floating-point tensors on disk, such as ``torch.float16``; ``None`` keeps theirs.
        metadata: texts for the file's header.

    Raises:
        RunError: the file can't be written.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {
        name: (tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)).clone().contiguous()
        for name, tensor in state.items()
    }
    write_tensors(path, tensors, metadata)


def _read_weights(weights: str, model_name: str) -> tuple[Any, Any]:
    """Reads a file, or fetches torchvision's weights by their name; returns also torchvision's entry."""
    path = Path(weights)
    if isinstance(model_name, str) and is_vendor(model_name):
        return vendor_of(model_name)[0].read_weights(path), None
    published = {Path(entry.url).name: entry for entry in _published(model_name)}
    if exists(path) or path.suffix in (".safetensors", ".pt", ".pth"):
        return read_checkpoint(path), published.get(path.name)
    entry = published_weights(weights, model_name)
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True), entry
    except (OSError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise ModelError(
            f"cannot fetch {entry.url} ({problem}); get the file another way and give it with --weights"
        ) from error


def _published(model_name: str) -> list[Any]:
    return list(get_model_weights(model_name)) if model_name in list_models(module=detection) else []


def published_weights(weights: str, model_name: str) -> Any:
    """Torchvision's entry for weights by their name.

    Raises:
        ModelError: there is none of that name.
    """
    try:
        if "." in weights:
            return get_weight(weights)
        return get_model_weights(model_name)[weights]
    except (ValueError, KeyError) as error:
        available = ", ".join(str(entry) for entry in _published(model_name)) or f"none for {model_name}"
        raise ModelError(
            f"no file {weights}, no torchvision weights of that name (they are: {available}); check --weights"
        ) from error


def _absorb_zero_eps(state: State) -> State:
    """Scales the norms' weights so that their epsilon gives the outputs of epsilon 0: w·√((v + ε) / v)."""
    eps = 1e-5  # of torch's norms and of torchvision's frozen ones
    scaled = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            weight = name.removesuffix("running_var") + "weight"
            ratio = ((variance.double() + eps) / variance.double()).sqrt()
            scaled[weight] = (state[weight] * ratio.nan_to_num(1.0, 1.0, 1.0)).to(state[weight].dtype)
    return scaled


def refuse_not_finite(state: State, expected: State, where: str) -> None:
    """Refuses NaN, and infinity where the model's own values are finite: a mask may hold it.

    Raises:
        ModelError: names the first such tensor of ``where``.
    """
    for name in sorted(expected.keys() & state.keys()):
        bad = ~state[name].isfinite() & (expected[name].isfinite() | state[name].isnan())
        if bad.any():
            raise ModelError(
                f"{where}: `{name}` holds NaN or infinity; give weights of a training that did not diverge"
            )


def _norm_of(state: State) -> NormKind:
    """``frozen`` where the backbone's norms have statistics but count no batches."""
    inside = [name for name in state if name.startswith("backbone.")] or list(state)
    means = [name for name in inside if name.endswith("running_mean")]
    counted = any(name.endswith("num_batches_tracked") for name in inside)
    return "frozen" if means and not counted else "batch"


def _heads(spec: ModelSpec, model: nn.Module, state: State, where: str) -> dict[str, int]:
    """The classes of `head_classes`; empty where all shapes fit.

    Raises:
        ModelError: see there; or the weights differ in more than the class head.
    """
    expected = model.state_dict()
    if all(state[name].shape == tensor.shape for name, tensor in expected.items() if name in state):
        return {}
    axes = class_axes(spec, model)
    _refuse_differing(spec, expected, state, where, axes.keys())
    return head_classes(axes, expected, state, where)


def _classes_of(heads: Mapping[str, int], spec: ModelSpec, state: State, seed: int) -> int:
    """The number of classes of some weights: the one at which all class heads fit, else the least.

    Layers may seem to be for several: the towers of Ultralytics' smallest models have a channel per class,
    but no more than 100.
    """
    numbers = sorted({*heads.values()})
    for number in numbers if len(numbers) > 1 else ():
        with show(None):
            made = outline(spec.model_copy(update={"num_classes": number}), seed).state_dict()
        if all(made[name].shape == state[name].shape for name in heads):
            return number
    return numbers[0] if numbers else spec.num_classes


def _refuse_differing(
    spec: ModelSpec, expected: State, state: State, where: str, ignored: Collection[str]
) -> None:
    """Refuses weights that differ from the model's in other tensors than the ``ignored``, and counters."""
    compared, own = (
        {name: tensor for name, tensor in each.items() if name not in ignored and not is_counter(name)}
        for each in (state, expected)
    )
    if differing := differences(compared, own):
        known = " or ".join(each for each in with_tensors(state, spec.arguments) if each != spec.name)
        fit = f"their keys are those of {known}, so give --model" if known else "check model"
        raise ModelError(
            f"weights {where} are not for {spec.name}: {differing}; {fit}, model_arguments and weights"
        )


def _fill(model: nn.Module, spec: ModelSpec, state: State, where: str, heads: Collection[str]) -> None:
    """Copies ``state`` into ``model``; a class head of another size, of tensors in ``heads``, stays fresh."""
    fresh = model.state_dict()
    resized = [n for n in fresh if n in heads and fresh[n].shape != state[n].shape]
    _refuse_differing(spec, fresh, state, where, resized)
    compared = {n: tensor for n, tensor in state.items() if n not in resized and not is_counter(n)}
    refuse_not_finite(compared, fresh, where)
    refuse_bad_variances(model, compared, where)
    if resized:
        say(f"class head: {', '.join(resized)} do not fit {spec.num_classes} classes and start fresh")
    model.load_state_dict({n: state[n] if n in state and n not in resized else fresh[n] for n in fresh})
