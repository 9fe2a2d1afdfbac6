"""Runs ONNX files: ONNX Runtime and OpenVINO behind one call, arrays in and arrays out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from autoprune.errors import ConfigError, ModelError
from autoprune.runtimes.extras import need

Runtime = Literal["torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Session = Callable[[NDArray[np.float32]], list[NDArray[Any]]]


def open_session(path: Path, runtime: str, device: str = "cpu", threads: int | None = None) -> Session:
    """Loads an ONNX file with one input.

    Args:
        path: the file.
        runtime: ``onnxruntime`` or ``openvino``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; ``None`` for torch's own number, so that runtimes compare.

    Returns:
        A function from the input to the list of outputs; in float32 whatever the processor could do.

    Raises:
        ConfigError: the runtime is unknown or not installed, or has no such device here.
        ModelError: the runtime can't read the file.
    """
    threads = threads or torch.get_num_threads()
    if runtime == "onnxruntime":
        return _onnxruntime(path, device, threads)
    if runtime == "openvino":
        return _openvino(path, device, threads)
    raise ConfigError(f"no runtime {runtime!r} for ONNX files; --runtime is one of {', '.join(RUNTIMES)}")


def _onnxruntime(path: Path, device: str, threads: int) -> Session:
    library = need("onnxruntime")
    cuda = device.startswith("cuda")
    provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if provider not in library.get_available_providers():
        raise ConfigError(
            f"onnxruntime {library.__version__} has no {provider} here; install onnxruntime-gpu, or "
            "give --device cpu"
        )
    options = library.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that it folds
    options.intra_op_num_threads = threads
    number = int(device.partition(":")[2] or 0)
    providers: list[Any] = [(provider, {"device_id": number})] if cuda else [provider]
    try:
        session = library.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its classes of errors are not exported
        raise _unreadable(path, "onnxruntime", error) from error
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda image: list(session.run(None, {name: image}))


def _openvino(path: Path, device: str, threads: int) -> Session:
    library = need("openvino")
    if device != "cpu":
        raise ConfigError(f"openvino runs on the CPU here, not on {device!r}; give --device cpu")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = library.Core()
    try:
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    except Exception as error:  # whatever its frontend raises
        raise _unreadable(path, "openvino", error) from error
    request = compiled.create_infer_request()

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        found = request.infer([image], share_inputs=True)
        return [np.asarray(found[output]) for output in compiled.outputs]

    return run


def _unreadable(path: Path, runtime: str, error: Exception) -> ModelError:
    problem = " ".join(str(error).split())[:300]
    return ModelError(f"{runtime} can't read {path}: {problem}; export it anew, or try another runtime")
