"""Loads and saves weights: files, torchvision's weight names, class heads for other data sets."""

import pickle
from collections.abc import Mapping
from os.path import exists  # which takes a name that is too long for one of no file
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torchvision.models import detection, get_model_weights, get_weight, list_models

from autoprune.config import ModelSpec
from autoprune.detectors.factories import build, with_tensors
from autoprune.errors import ModelError
from autoprune.fields import NormKind
from autoprune.files import replacing
from autoprune.progress import say
from autoprune.validation import as_path, check_kind, first_problem

State = dict[str, Tensor]

WRAPPERS = ("model", "state_dict", "model_state_dict")
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
) -> tuple[nn.Module, ModelSpec]:
    """Builds a detector and loads its weights.

    Args:
        name: see `ModelSpec.name`.
        arguments: keyword arguments of the builder.
        num_classes: background included; ``None`` takes the number of the weights, or COCO's 91.
        norm: kind of the backbone's norms; weights trained with either kind can be loaded, as the conversion
            changes no output. ``auto`` takes ``frozen`` for weights that hold no ``num_batches_tracked``.
        weights: a .safetensors or .pt file, or a torchvision weight name; ``None`` keeps fresh weights.
        seed: of fresh weights; a class head keeps them if its number of classes differs from the weights'.

    Returns:
        The detector, in eval mode on the CPU, and the specification from which `build` makes it.

    Raises:
        ModelError: an argument is wrong, the model can't be built, or the weights can't be read, hold values
            that are not finite or belong to another architecture.
    """
    state = None
    if weights is not None:
        instead = "a .safetensors or .pt file, or a name of torchvision's weights"
        state = _read_weights(str(as_path("weights", weights, instead, ModelError)), name)
    arguments = {} if arguments is None else arguments
    check_kind("arguments", arguments, Mapping, "a dict of keyword arguments of the builder", ModelError)
    try:
        spec = ModelSpec(
            name=name,
            arguments=dict(arguments),
            num_classes=DEFAULT_CLASSES if num_classes is None else num_classes,
            norm=_norm_of(state) if norm == "auto" else norm,
        )
    except ValidationError as error:
        raise ModelError(first_problem(error, ModelSpec, "load_dense")) from error
    model = build(spec, seed)
    if state is None:
        return model.eval(), spec
    if num_classes is None and (inferred := _classes_of(spec, model, state)) != spec.num_classes:
        spec = spec.model_copy(update={"num_classes": inferred})
        model = build(spec, seed)
    _fill(model, spec, state, str(weights))
    return model.eval(), spec


def load_state(path: Path) -> State:
    """Reads weights: .safetensors, or whatever `torch.load` reads with ``weights_only=True``.

    ``{"model": …}``, ``{"state_dict": …}`` and ``{"model_state_dict": …}`` are unwrapped, a prefix
    ``module.`` is removed, and floating-point numbers become float32.

    Raises:
        ModelError: the file can't be read, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = parse_safetensors(path.read_bytes())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read weights {path}: {error.strerror or error}; check --weights") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(
            f"{path} holds no weights that can be read safely; save model.state_dict() as .safetensors or .pt"
        ) from error
    return _plain_state(content, str(path))


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
    with replacing(path) as temporary:
        temporary.write_bytes(serialize(tensors, dict(metadata) if metadata else None))


def _read_weights(weights: str, model_name: str) -> State:
    """Reads a file, or fetches torchvision's weights by their name."""
    path = Path(weights)
    published = {Path(entry.url).name: entry for entry in _published(model_name)}
    if exists(path) or path.suffix in (".safetensors", ".pt", ".pth"):
        state = load_state(path)
        entry = published.get(path.name)
    else:
        entry = published_weights(weights, model_name)
        try:
            content = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            problem = " ".join(str(error).split())
            raise ModelError(
                f"cannot fetch {entry.url} ({problem}); get the file another way and give it with --weights"
            ) from error
        state = _plain_state(content, weights)
    return _absorb_zero_eps(state) if entry is not None and str(entry) in ZERO_EPS_WEIGHTS else state


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


def _absorb_zero_eps(state: State, eps: float = 1e-5) -> State:
    """Scales the norms' weights so that epsilon ``eps`` gives the outputs of epsilon 0: w·√((v + ε) / v)."""
    scaled = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            weight = name.removesuffix("running_var") + "weight"
            ratio = ((variance.double() + eps) / variance.double()).sqrt()
            scaled[weight] = (state[weight] * ratio.nan_to_num(1.0, 1.0, 1.0)).to(state[weight].dtype)
    return scaled


def _plain_state(content: Any, where: str) -> State:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{where} holds no state dict; save model.state_dict() and give that with --weights")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{where} is not a state dict: `{name}` is not a tensor; save model.state_dict()"
            )
        if not isinstance(name, str) or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise ModelError(
                f"{where} is not a state dict: `{name}` is not a dense tensor with a name; "
                "save model.state_dict() of the float model"
            )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in content.items()
    }


def differences(state: State, expected: State) -> list[str]:
    """A line for each tensor of ``state`` whose name, shape or kind of number is not the model's."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    lines += [f"{name} is not in the model" for name in sorted(state.keys() - expected.keys())]
    for name in sorted(expected.keys() & state.keys()):
        (shape, kind), (own_shape, own_kind) = (_form(each[name]) for each in (state, expected))
        if shape != own_shape:
            lines.append(f"{name} is {shape}, the model's {own_shape}")
        elif kind != own_kind:
            lines.append(f"{name} holds {kind} numbers, the model's {own_kind}")
    return lines


def _form(tensor: Tensor) -> tuple[list[int], str]:
    kind = "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"
    return list(tensor.shape), kind


def refuse_not_finite(state: State, expected: State, where: str) -> None:
    """Refuses NaN, and infinity where the model's own values are finite: a mask may hold it.

    Raises:
        ModelError: names the first such tensor of ``where``.
    """
    for name in expected.keys() & state.keys():
        bad = ~state[name].isfinite() & (expected[name].isfinite() | state[name].isnan())
        if bad.any():
            raise ModelError(
                f"{where}: `{name}` holds NaN or infinity; give weights of a training that did not diverge"
            )


def _norm_of(state: State | None) -> Any:
    """``frozen`` where the backbone's norms have statistics but count no batches."""
    if state is None:
        return "batch"
    inside = [name for name in state if name.startswith("backbone.")] or list(state)
    means = [name for name in inside if name.endswith("running_mean")]
    counted = any(name.endswith("num_batches_tracked") for name in inside)
    return "frozen" if means and not counted else "batch"


class ClassAxis(NamedTuple):
    """The axis of a tensor whose size is ``without + per_class · classes``."""

    axis: int
    per_class: int
    without: int


def _class_axes(spec: ModelSpec, model: nn.Module) -> dict[str, ClassAxis]:
    """For each tensor whose shape depends on the number of classes: axis, size per class, rest."""
    more = build(spec.model_copy(update={"num_classes": spec.num_classes + 1})).state_dict()
    axes: dict[str, ClassAxis] = {}
    for name, tensor in model.state_dict().items():
        sizes = zip(tensor.shape, more[name].shape, strict=True) if name in more else ()
        for axis, (size, larger) in enumerate(sizes):
            if size != larger:
                axes[name] = ClassAxis(axis, larger - size, size - (larger - size) * spec.num_classes)
    return axes


def depends_on_classes(spec: ModelSpec, model: nn.Module) -> bool:
    """Whether the number of classes decides a shape: a factory may have one of its own."""
    return bool(_class_axes(spec, model))


def _classes_of(spec: ModelSpec, model: nn.Module, state: State) -> int:
    """The number of classes that the shapes in ``state`` imply."""
    if all(state[name].shape == tensor.shape for name, tensor in model.state_dict().items() if name in state):
        return spec.num_classes
    for name, axis in _class_axes(spec, model).items():
        if name in state and state[name].dim() > axis.axis:
            classes = (state[name].shape[axis.axis] - axis.without) // axis.per_class
            if classes > 1:
                return classes
    return spec.num_classes


def _fill(model: nn.Module, spec: ModelSpec, state: State, where: str) -> None:
    """Copies ``state`` into ``model``; a class head of another size stays fresh."""
    fresh = model.state_dict()
    other_shapes = [n for n in fresh if n in state and fresh[n].shape != state[n].shape]
    sized_by_classes = _class_axes(spec, model) if other_shapes else {}
    resized = [n for n in other_shapes if n in sized_by_classes]
    ignored = {name for name in {*fresh, *state} if name.endswith("num_batches_tracked")} | {*resized}
    compared, expected = ({n: each[n] for n in each if n not in ignored} for each in (state, fresh))
    if differing := differences(compared, expected):
        known = " or ".join(each for each in with_tensors(state, spec.arguments) if each != spec.name)
        fit = f"their keys are those of {known}, so give --model" if known else "check model"
        raise ModelError(
            f"weights {where} are not for {spec.name}: {len(differing)} keys differ: "
            f"{'; '.join(differing[:5])}; {fit}, model_arguments and weights"
        )
    refuse_not_finite(compared, expected, where)
    if resized:
        say(f"class head: {', '.join(resized)} do not fit {spec.num_classes} classes and start fresh")
    model.load_state_dict({n: state[n] if n in state and n not in resized else fresh[n] for n in fresh})
