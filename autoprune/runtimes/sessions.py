"""The runtimes that networks run in, in one table, and sessions of them: arrays in, arrays out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoprune.errors import ConfigError, ModelError, is_out_of_memory
from autoprune.process import loggers_at
from autoprune.runtimes.extras import EXTRAS, need

Session = Callable[[NDArray[np.float32]], list[NDArray[Any]]]
"""From the input of a network to the list of its outputs."""


@dataclass(frozen=True)
class Runtime:
    """One runtime; a new one is a row in `RUNTIMES` and passes `tests/contracts/test_runtimes.py`.

    Attributes:
        libraries: modules to import, the runtime's own first; the extras of `extras.EXTRAS` install them.
        suffix: of the files that it reads: ``.onnx``, or ``.pt2`` for a program of torch.export.
        devices: kinds of devices that it runs on, as torch names them.
        open: from a file with one input, a device such as ``cuda:1`` and a number of CPU threads to a session
            in float32. Raises `ConfigError` where the device is not available, and whatever the library
            raises where it can't read the file.
    """

    libraries: tuple[str, ...]
    suffix: str
    devices: tuple[str, ...]
    open: Callable[[Path, str, int], Session]

    @property
    def name(self) -> str:
        """Its key in `RUNTIMES`, which is the name of its own library."""
        return self.libraries[0]

    @property
    def extra(self) -> str | None:
        """The optional extra of autoprune that installs it; ``None`` for torch, which is always there."""
        return EXTRAS.get(self.name)

    @property
    def version(self) -> str:
        """Version of its library, without the build.

        Raises:
            ConfigError: it is not installed.
        """
        return str(need(self.name).__version__).partition("-")[0]


def find_runtime(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        ConfigError: there is none; lists the names.
    """
    if name not in RUNTIMES:
        raise ConfigError(f"no runtime {name!r}; choose one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def need_runtime(name: str) -> None:
    """Refuses a runtime that is unknown or not installed.

    Raises:
        ConfigError: names the runtimes, or the extra that installs what is missing.
    """
    for library in find_runtime(name).libraries:
        need(library)


def open_session(path: Path, runtime: str, device: str = "cpu", threads: int | None = None) -> Session:
    """Loads a file with one input.

    Args:
        path: the file, of the kind that the runtime reads.
        runtime: a key of `RUNTIMES`.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        threads: CPU threads; ``None`` for torch's own number, so that runtimes are comparable.

    Returns:
        A session that computes in float32, even where the processor has a faster type.

    Raises:
        ConfigError: the runtime is unknown or not installed, or does not run on the device.
        ModelError: the runtime can't read the file.
    """
    chosen = find_runtime(runtime)
    need_runtime(runtime)
    if device.partition(":")[0] not in chosen.devices:
        raise ConfigError(
            f"{runtime} runs on {' and '.join(chosen.devices)} here, not on {device!r}; give --device "
            f"{chosen.devices[0]}"
        )
    try:
        return chosen.open(path, device, threads or torch.get_num_threads())
    except ConfigError:
        raise
    except Exception as error:  # whatever the runtime's reader raises; their classes have nothing in common
        if is_out_of_memory(error):
            raise
        problem = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{runtime} can't read {path}: {problem}; export it again, or try another runtime"
        ) from error


def _open_torch(path: Path, device: str, threads: int) -> Session:
    """Runs a program of torch.export; torch's number of threads is the process' own."""
    # of sizes that a program checks and no longer holds torch warns, and runs all the same
    with loggers_at(logging.ERROR, logging.getLogger("torch._export.serde.serialize")):
        program: Callable[..., tuple[torch.Tensor, ...]] = torch.export.load(path).module().to(device)

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy(force=True) for output in program(torch.from_numpy(image).to(device))]

    return run


def _open_onnxruntime(path: Path, device: str, threads: int) -> Session:
    library = need("onnxruntime")
    cuda = device.startswith("cuda")
    provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if provider not in library.get_available_providers():
        raise ConfigError(
            f"onnxruntime {library.__version__} has no {provider} here; install onnxruntime-gpu, or "
            "give --device cpu"
        )
    options = library.SessionOptions()
    options.log_severity_level = 3  # errors only; it warns of every constant that it folds
    options.intra_op_num_threads = threads
    number = int(device.partition(":")[2] or 0)
    providers: list[Any] = [(provider, {"device_id": number})] if cuda else [provider]
    session = library.InferenceSession(str(path), options, providers=providers)
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda image: list(session.run(None, {name: image}))


def _open_openvino(path: Path, device: str, threads: int) -> Session:
    library = need("openvino")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = library.Core()
    compiled = core.compile_model(core.read_model(str(path)), device.upper(), settings)
    request = compiled.create_infer_request()

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        results = request.infer([image], share_inputs=True)
        return [np.asarray(results[output]) for output in compiled.outputs]

    return run


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(("torch",), ".pt2", ("cpu", "cuda"), _open_torch),
        Runtime(("onnxruntime", "onnx"), ".onnx", ("cpu", "cuda"), _open_onnxruntime),
        Runtime(("openvino", "onnx"), ".onnx", ("cpu",), _open_openvino),
    )
}
