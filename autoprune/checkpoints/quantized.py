"""Refuses weights of a quantized model: their numbers mean nothing without a scale that lies elsewhere."""

from torch import Tensor

from autoprune.errors import ModelError

REMEDY = "give the weights before they were quantized, in float32, float16 or bfloat16"


def refuse_quantized(name: str, value: Tensor, where: object) -> None:
    """Refuses floating-point numbers of 8 bits or fewer, which are read without an error.

    Args:
        name: the tensor's, for the message.
        value: the tensor.
        where: its file.

    Raises:
        ModelError: see above.
    """
    if value.is_floating_point() and value.element_size() == 1:
        raise ModelError(
            f"{where}: `{name}` holds {str(value.dtype).removeprefix('torch.')} numbers, which need a scale; "
            f"{REMEDY}"
        )
