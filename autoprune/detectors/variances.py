"""Checks the running variances of norms, which can be finite and still make every output NaN."""

from torch import nn

from autoprune.checkpoints.prefixes import State
from autoprune.errors import ModelError


def refuse_bad_variances(model: nn.Module, state: State, where: str) -> None:
    """Refuses running variances that no data has: below 0, or 0 where the norm adds no epsilon.

    Raises:
        ModelError: names the first such tensor of ``where``.
    """
    for name, module in model.named_modules():
        key = f"{name}.running_var".lstrip(".")
        variance, epsilon = state.get(key), getattr(module, "eps", None)
        if variance is None or not isinstance(epsilon, float | int) or not variance.is_floating_point():
            continue
        least = float(variance.min()) if variance.numel() else 1.0
        if least < 0 or least + epsilon <= 0:
            raise ModelError(
                f"{where}: `{key}` holds the variance {least:g}, which no data has; give weights whose "
                "norms were saved as they were trained"
            )
