"""Stand-ins for harmless classes in checkpoints: reading one imports and runs nothing of theirs.

What trainers store beside the weights (arguments, paths, dates, numpy's numbers) is of no use here.
`torch.load` with ``weights_only=True`` builds these objects in its place, by the name in the file; it refuses
any other name.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Inert:
    """Takes any arguments and any state, and ignores them."""

    def __new__(cls, *args: Any) -> "Inert":  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:  # noqa: D105
        pass


class Dict:
    """A dict of whatever class, read as an `OrderedDict` with the same items."""

    def __new__(cls, *args: Any) -> Any:  # noqa: D102
        return OrderedDict()


def as_list(*args: Any) -> list[Any]:
    """A sequence of whatever class, which torch then fills as a list."""
    return []


class DType(Inert):
    """A dtype of numpy: its name such as ``f4``, and its byte order."""

    def __init__(self, name: str = "", *args: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:  # noqa: D105
        self.order = state[1]


class Array(Inert):
    """An array of numpy; its own class would take any dtype of a file, also a damaged one."""

    def __setstate__(self, state: Any) -> None:  # noqa: D105
        _, self.shape, self.dtype, self.fortran, self.content = state

    def tensor(self) -> Tensor | None:
        """The array as a tensor; ``None`` where it does not hold plain numbers."""
        try:
            if not re.fullmatch("[biufc][1-9][0-9]?", self.dtype.name):
                return None
            numbers = np.frombuffer(
                self.content, np.dtype(self.dtype.order.replace("|", "=") + self.dtype.name)
            )
            shaped = numbers.reshape(self.shape[::-1]).T if self.fortran else numbers.reshape(self.shape)
            return torch.from_numpy(shaped.astype(numbers.dtype.newbyteorder("="), order="C"))
        except (AttributeError, TypeError, ValueError):  # it has no such state, or one that does not fit
            return None


def _names() -> Iterator[tuple[Callable[..., Any], str]]:
    words: dict[Callable[..., Any], str] = {
        Inert: "argparse.Namespace types.SimpleNamespace decimal.Decimal fractions.Fraction uuid.UUID "
        "datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone "
        "builtins.int builtins.float builtins.str builtins.bool builtins.bytes builtins.tuple "
        "builtins.frozenset builtins.slice builtins.range torch.torch_version.TorchVersion "
        "numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor "
        "numpy.random._pickle.__bit_generator_ctor numpy.random.bit_generator.__pyx_unpickle_SeedSequence "
        "numpy.random.bit_generator.SeedSequence "
        "numpy.random._mt19937.MT19937 numpy.random._pcg64.PCG64 typing.Any "
        "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.Metadata "
        "omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode "
        "omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode "
        "mmengine.logging.history_buffer.HistoryBuffer",
        Dict: "builtins.dict collections.defaultdict easydict.EasyDict addict.addict.Dict box.box.Box "
        "yacs.config.CfgNode fvcore.common.config.CfgNode detectron2.config.config.CfgNode "
        "mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict "
        "pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict "
        "lightning.fabric.utilities.data.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict",
        as_list: "builtins.list collections.deque",
        DType: "numpy.dtype",
        Array: "numpy.ndarray",
    }
    for stand_in, names in words.items():
        yield from ((stand_in, name) for name in names.split())
    for numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
        yield Inert, f"{numpy}.scalar"
        yield Array, f"{numpy}._reconstruct"
    for kind in vars(np.dtypes).values():
        if isinstance(kind, type):
            yield DType, f"numpy.dtypes.{kind.__name__}"
    for pathlib in ("pathlib", "pathlib._local"):  # before and since Python 3.13
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"):
            yield Inert, f"{pathlib}.{name}"
    for module in (torch.optim, torch.optim.lr_scheduler):  # whole, where trainers store them so
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__.startswith("torch.optim"):
                yield Inert, f"{kind.__module__}.{kind.__qualname__}"
    for module_name in ("torch.amp.grad_scaler", "torch.cuda.amp.grad_scaler"):
        yield Inert, f"{module_name}.GradScaler"


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = list(dict.fromkeys(_names()))
"""Pairs of a stand-in and the full name that it replaces, for `torch.serialization.safe_globals`."""
