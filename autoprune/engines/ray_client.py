"""A search that is driven through Ray's client (``ray://HOST:PORT``), from outside of the cluster.

Tune has to run where the workers are. So it runs in a task on the head node, while the ledger stays in the
driver's process: Tune gets a stand-in for `Dispatch`, whose calls reach the driver through a mailbox.
"""

import asyncio
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.cloudpickle
import ray.util.client

from autoprune.engines.dispatch import Dispatch, cause_of
from autoprune.engines.ray_nodes import node_options, nodes, run_on
from autoprune.errors import ConfigError, ResumableError, RunError
from autoprune.study.trials import Candidate

POLL_S = 2.0  # the driver waits this long at a time; Ctrl-C is handled in between
ANSWER_S = 600.0  # a driver that does not answer for this long counts as dead
DISCONNECT_S = 5.0  # a cluster that answers ends a connection within this
OVERDUE_EVERY_S = 1.0  # between checks for overdue workers; Tune asks at each of its steps


def check_client(address: str | None) -> None:
    """Checks that an address of Ray's client is complete, and that its packages are installed.

    Raises:
        ConfigError: it names no port, or grpcio is not installed.
    """
    if not (address or "").startswith("ray://"):
        return
    if not str(address).rpartition(":")[2].isdigit():
        raise ConfigError(f"--address {address} names no port; `ray start --head` serves clients at 10001")
    if importlib.util.find_spec("grpc") is None:
        raise ConfigError(
            f"--address {address} needs grpcio: pip install 'autoprune[client]', or run the search on a "
            "machine of the cluster with --address auto"
        )


def through_client() -> bool:
    """Whether this process is connected by Ray's client."""
    return bool(ray.util.client.ray.is_connected())


def serve(dispatch: Dispatch, work: Callable[[Any], None]) -> None:
    """Runs ``work`` on the cluster, and answers its calls here until it ends.

    Args:
        dispatch: stays here, with the ledger.
        work: is sent to the head node, and called there with a `RemoteDispatch`.

    Raises:
        RunError: the connection or the head node's task is lost.
    """
    head = nodes()[0]
    mailbox = ray.remote(Mailbox).options(**node_options(head)).remote()
    # As bytes: the process that serves this client there need not import what only the task needs.
    task = run_on(head, _work, mailbox, ray.cloudpickle.dumps(work))
    try:
        answer = None
        while (call := _next(mailbox, task, answer)) is not None:
            name, arguments = call
            member = getattr(dispatch, name)
            answer = (member(*arguments) if callable(member) else member, dispatch.failed)
    except RunError:
        raise
    except BaseException:  # Ctrl-C; a connection that the caller opened stays open
        with _cut_off(), suppress(ConnectionError):  # a lost connection ends the task anyway
            ray.cancel(task, force=True)
        raise


def disconnect() -> None:
    """Ends the connection, within seconds even if the cluster no longer answers."""
    with _cut_off():
        ray.shutdown()


@contextmanager
def _cut_off() -> Iterator[None]:
    """Closes the connection if the block takes longer than `DISCONNECT_S`; Ray would wait for ten minutes."""
    channel = ray.util.client.ray.get_context().client_worker.channel
    timer = threading.Timer(DISCONNECT_S, channel.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def connection_lost(error: Exception) -> ResumableError:
    """What to say if the connection, or the driver's task on the cluster, is lost."""
    if isinstance(error, ray.exceptions.RayError):
        problem = f"what drives the search on the head node failed ({cause_of(str(error))[:200]})"
    else:
        problem = "the connection to the Ray cluster was lost"
    return ResumableError(f"{problem}; finished trials are kept, the same command resumes the search")


def _next(mailbox: Any, task: Any, answer: tuple[Any, bool] | None) -> tuple[str, Sequence[Any]] | None:
    """Sends the last call's answer, and waits for the next call; ``None`` once the task has ended."""
    try:
        call = mailbox.next.remote(answer)
        while not (ready := ray.wait([call, task], timeout=POLL_S)[0]):
            pass
        if task in ready:
            ray.get(task)
            return None
        name, arguments = ray.get(call)
        return name, arguments
    except Exception as error:  # Ray's own, gRPC's, and plain ones after a session ended
        raise connection_lost(error) from error


def _work(mailbox: Any, pickled: bytes) -> None:
    """Runs on the head node."""
    work: Callable[[RemoteDispatch], None] = ray.cloudpickle.loads(pickled)
    work(RemoteDispatch(mailbox))


class Mailbox:
    """Carries calls to the driver and answers back, one at a time; an actor."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[tuple[str, Sequence[Any]]] = asyncio.Queue()
        self._answers: asyncio.Queue[tuple[Any, bool]] = asyncio.Queue()

    async def call(self, name: str, arguments: Sequence[Any]) -> tuple[Any, bool]:
        """What a method of the driver's `Dispatch` returns, and whether the search has to end.

        Raises:
            TimeoutError: the driver does not answer for `ANSWER_S`.
        """
        await self._calls.put((name, arguments))
        return await asyncio.wait_for(self._answers.get(), ANSWER_S)

    async def next(self, answer: tuple[Any, bool] | None) -> tuple[str, Sequence[Any]]:
        """Passes the answer of the last call on, if there was one, and waits for the next call."""
        if answer is not None:
            await self._answers.put(answer)
        return await self._calls.get()


class RemoteDispatch:
    """Stands for the driver's `Dispatch` on the cluster; see there for the methods.

    Args:
        mailbox: the actor that carries the calls.

    Attributes:
        failed: whether the search has to end.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._last_check = time.monotonic()
        self._lost: Exception | None = None
        self.failed = False

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._lost is not None:
            raise self._lost
        try:
            result, self.failed = ray.get(self._mailbox.call.remote(name, arguments))
        except ray.exceptions.RayError as error:  # the driver is gone: it gets no more calls
            self._lost, self.failed = error, True
            raise
        return result

    @property
    def done(self) -> bool:
        """Whether no trial is to be proposed or in flight."""
        return bool(self._call("done"))

    def ask(self, trial_id: str) -> Candidate | None:
        """The next trial, if any can be begun now."""
        candidate: Candidate | None = self._call("ask", trial_id)
        return candidate

    def begin(self, trial_id: str) -> None:
        """A worker has loaded everything and starts the trial."""
        self._call("begin", trial_id)

    def report(self, trial_id: str, answer: Mapping[str, Any]) -> bool:
        """Passes a worker's answer to the ledger; whether the trial is promoted to the next rung."""
        return bool(self._call("report", trial_id, answer))

    def record_cause(self, trial_id: str, cause: str) -> None:
        """Keeps why the trial's worker was lost."""
        self._call("record_cause", trial_id, cause)

    def finish(self, trial_id: str, lost: bool) -> None:
        """Ends a trial."""
        self._call("finish", trial_id, lost)

    def overdue(self) -> list[str]:
        """Tune's ids of the trials whose workers are to be killed."""
        if time.monotonic() - self._last_check < OVERDUE_EVERY_S:
            return []
        self._last_check = time.monotonic()
        return list(self._call("overdue"))
