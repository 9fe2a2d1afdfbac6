"""Builds detectors with fresh weights by their names, and converts between the two kinds of norm."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from autoprune.config import ModelSpec
from autoprune.detectors.resnets import OWN
from autoprune.detectors.transform_values import refuse_bad_values
from autoprune.errors import ModelError, out_of_memory
from autoprune.fields import VENDORS, NormKind, is_vendor, near_vendor
from autoprune.process import stdout_to_stderr
from autoprune.progress import say
from autoprune.seeding import scoped
from autoprune.trust import is_factory, require_consent
from autoprune.validation import check_kind
from autoprune.vendors import VendorDetector, described

RESERVED = ("num_classes", "norm", "weights", "weights_backbone")
"""Arguments of builders that are settings of their own."""
FROZEN = {"weight", "bias", "running_mean", "running_var"}
"""Buffers of a frozen norm."""
SEEDS = 2**32
"""Seeds are below it, as in `Config`."""


def names() -> list[str]:
    """Names that `build` accepts: torchvision's detectors and autoprune's own."""
    return sorted({*list_models(module=detection), *OWN})


def build(spec: ModelSpec, seed: int = 0, as_made: bool = False) -> nn.Module:
    """Builds a detector on the CPU with fresh weights, without a download.

    Args:
        spec: the architecture.
        seed: of the fresh weights.
        as_made: keeps the kind of norms that the builder chose, whatever the specification says.

    Raises:
        ModelError: the name, an argument or the seed is invalid, or the user's factory failed.
    """
    instead = f"a whole number from 0 to {SEEDS - 1}"
    check_kind("seed", seed, Integral, instead, ModelError)
    if not 0 <= seed < SEEDS:
        raise ModelError(f"seed is {seed}; give {instead}")
    arguments = dict(spec.arguments)
    if reserved := [name for name in RESERVED if name in arguments]:
        raise ModelError(
            f"model_arguments cannot hold `{reserved[0]}`; weights, num_classes and norm are own settings"
        )
    factory = _factory(spec, arguments)
    try:
        with (
            out_of_memory(f"while building {spec.name}", "free some, or give a smaller detector", ModelError),
            scoped(seed),
            stdout_to_stderr() if ":" in spec.name else nullcontext(),
        ):
            model = factory(**arguments)
    except (KeyboardInterrupt, ModelError):
        raise
    except BaseException as error:  # a factory is foreign code, which can raise anything, or call sys.exit
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"{spec.name} failed to build: {problem}; check model and model_arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.name} returned a {type(model).__name__}; it must return a torch.nn.Module")
    if ":" not in spec.name:
        _refuse_ignored_arguments(spec, model)
    refuse_bad_values(spec.name, model)
    model = _as_float32(spec.name, model)
    return model if as_made else _set_norm(model, spec.norm)


def outline(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Builds a detector of which only the names, shapes and types of its tensors are read.

    Those of `names` take no memory and no time for fresh weights, on the meta device; a user's factory and a
    vendor may compute with values, and build as for `build`, whose arguments and errors these are.
    """
    with nullcontext() if ":" in spec.name else torch.device("meta"):
        return build(spec, seed)


def norm_of(model: nn.Module) -> NormKind:
    """``frozen`` where a detector has norms that do not train."""
    return "frozen" if any(map(is_frozen_norm, model.modules())) else "batch"


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module is a frozen norm of any library: by its four buffers, and no parameter."""
    held = dict(module.named_buffers())
    return held.keys() == FROZEN and not list(module.parameters()) and held["weight"].dim() == 1


def with_tensors(tensors: Iterable[str], arguments: Mapping[str, Any]) -> list[str]:
    """Names of the known detectors whose tensors, counters of batches aside, have these names.

    Args:
        tensors: the names.
        arguments: of the builders; those that do not take them are left out.
    """
    wanted, fitting = _without_counters(tensors), []
    for name in names():
        with suppress(ModelError):
            model = outline(ModelSpec(name=name, arguments=dict(arguments), num_classes=2))
            if _without_counters(model.state_dict()) == wanted:
                fitting.append(name)
    return fitting


def _without_counters(tensors: Iterable[str]) -> set[str]:
    return {name for name in tensors if not name.endswith("num_batches_tracked")}


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """Returns a copy whose backbone norms are ``batch`` or ``frozen``, with the same outputs in eval mode.

    A model without a ``backbone`` is converted as a whole.
    """
    return _set_norm(deepcopy(model), norm)


def _factory(spec: ModelSpec, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Finds the builder, and adds to ``arguments`` those that every detector of its kind gets."""
    if is_vendor(spec.name):
        vendor, description = described(spec.name, spec.arguments)
        arguments.clear()
        return partial(vendor.build, description.arguments, spec.num_classes)
    if ":" in spec.name:
        factory = _user_factory(spec.name)
        try:
            parameters = inspect.signature(factory).parameters.values()
        except (TypeError, ValueError):
            return factory
        if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
            arguments["num_classes"] = spec.num_classes
        return factory
    arguments["num_classes"] = spec.num_classes
    if spec.name in OWN:
        return OWN[spec.name]
    if spec.name in list_models(module=detection):
        arguments |= {"weights": None, "weights_backbone": None}
        return partial(get_model, spec.name)
    near = difflib.get_close_matches(spec.name, names(), n=3)
    near += [VENDORS[each] for each in difflib.get_close_matches(spec.name, VENDORS, n=1)]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise ModelError(
        f"unknown model {spec.name!r}; {hint}`autoprune inspect --list` shows all, and "
        "package.module:function names your own"
    )


def _user_factory(name: str) -> Callable[..., Any]:
    if not is_factory(name):
        raise ModelError(f"model {name!r}: name it as package.module:function")
    require_consent(name)
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:  # as with `python -m`; the path of a console script lacks the current folder
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        with stdout_to_stderr():
            module = importlib.import_module(module_name)
            function = getattr(module, function_name, None)  # a lazy package imports more at this point
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs foreign code, such as a script that ends with sys.exit
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            near = near_vendor(name)
            meant = f"did you mean {near}? Else " if near else ""
            problem = (
                f"there is no module {error.name!r}; {meant}run from the folder that holds it, or install it"
            )
        else:
            problem = " ".join(f"importing it failed with {type(error).__name__}: {error}".split())
        raise ModelError(f"model {name}: {problem}") from error
    if not callable(function):
        raise ModelError(
            f"model {name}: {module_name} has no function {function_name!r}; name one that builds the model"
        )
    return function  # type: ignore[no-any-return]


def _refuse_ignored_arguments(spec: ModelSpec, model: nn.Module) -> None:
    """Refuses arguments that torchvision's ``**kwargs`` accepted and ignored."""
    builder = OWN.get(spec.name) or getattr(detection, spec.name)
    readers = [builder, GeneralizedRCNNTransform, *(cls for cls in type(model).__mro__ if cls is not object)]
    valid = {name for reader in readers for name in inspect.signature(reader).parameters}
    valid -= {"self", "args", "kwargs", "num_classes", "weights", "weights_backbone", "detector_arguments"}
    if unknown := [name for name in spec.arguments if name not in valid]:
        near = difflib.get_close_matches(unknown[0], valid, n=3) or sorted(valid)
        raise ModelError(f"model_arguments: {spec.name} has no `{unknown[0]}`; valid: {', '.join(near)}")
    if "trainable_backbone_layers" in spec.arguments:  # may stand in a policy of an earlier version
        say(
            "model_arguments: trainable_backbone_layers freezes nothing, as torchvision heeds it only with "
            "weights of its own; omit it"
        )


def _as_float32(name: str, model: nn.Module) -> nn.Module:
    """Casts a model in place whose parameters or half-precision buffers are of other floating-point types."""
    kinds = {x.dtype for x in model.parameters() if x.is_floating_point()}
    kinds |= {x.dtype for x in model.buffers() if x.is_floating_point() and x.dtype.itemsize < 4}
    if other := kinds - {torch.float32}:
        shown = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in other))
        say(f"{name} returns a model in {shown}; it is cast to float32")
        model.float()
    return model


def _set_norm(model: nn.Module, norm: str) -> nn.Module:
    """Replaces the backbone's norms in place.

    A vendor's detector that has frozen norms has frozen those that it means to: the others stay.
    """
    if norm == "frozen" and isinstance(model, VendorDetector) and norm_of(model) == "frozen":
        return model
    root = getattr(model, "backbone", model)
    for parent in list(root.modules()):
        for name, old in list(parent.named_children()):
            if norm == "frozen" and type(old) is nn.BatchNorm2d and old.running_mean is not None:
                setattr(parent, name, _like(old, FrozenBatchNorm2d))
            elif norm != "frozen" and is_frozen_norm(old):
                setattr(parent, name, _like(old, nn.BatchNorm2d))
    return model


def _like(old: Any, kind: Any) -> nn.Module:
    new: nn.Module = kind(len(old.running_mean), eps=_eps(old)).to(old.running_mean)  # device and dtype
    state = {name: value for name, value in old.state_dict().items() if name != "num_batches_tracked"}
    with torch.no_grad():
        for name, target in [*new.named_parameters(), *new.named_buffers()]:
            if name in state:
                target.copy_(state[name])
    return new.train(old.training)


def _eps(norm: nn.Module) -> float:
    """What a norm adds to its variances; a class that holds no ``eps`` is measured, as it may be a literal.

    Of the input √v a norm of variance v, no mean, and neither scale nor shift, gives √(v / (v + ε)).
    """
    if isinstance(eps := getattr(norm, "eps", None), float):
        return eps
    variance = 2.0**-13
    probe = deepcopy(norm).double().cpu()
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", variance)):
        getattr(probe, name).fill_(value)
    with torch.no_grad():
        out = probe(torch.full((1, len(probe.running_var), 1, 1), variance**0.5, dtype=torch.float64))  # type: ignore[arg-type]
    return float(f"{variance / float(out.flatten()[0]) ** 2 - variance:.6g}")
