"""Keeps a second driver away from a study in a database, where no file lock shows that there is a first."""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import optuna

from autoprune.errors import RunError

BEAT_S = 20.0  # between two renewals of a lease
STALE_S = 120.0  # after this long without a renewal, a driver on another host counts as dead
SETTLE_S = 0.3  # after which what was written says which of several drivers wrote last
ATTRIBUTE = "driver"


class Lease:
    """The right to drive a study, renewed by a thread until `release`.

    Args:
        study: the study, in a storage that threads may share.
        name: what the message calls it.
        clock: seconds since the epoch, which drivers on other hosts have too.

    Raises:
        RunError: another driver has it (names its host and pid); a lease of a dead driver is free.
    """

    def __init__(self, study: optuna.Study, name: str, clock: Callable[[], float] = time.time) -> None:
        self._study, self._clock, self._ended = study, clock, threading.Event()
        self._me = {"host": socket.gethostname(), "pid": os.getpid()}
        self._name, self._taken_by = name, ""
        self._refuse_others(name)
        self._beat()
        time.sleep(SETTLE_S)  # another driver may have seen a free lease, too: the last one to write has it
        self._refuse_others(name)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets the next driver in at once."""
        self._ended.set()
        self._thread.join()
        if self._is_mine(self._owner()):
            self._study.set_user_attr(ATTRIBUTE, None)

    def check(self) -> None:
        """Refuses to write once another driver has the study, as after this one was suspended for minutes.

        Raises:
            RunError: names the other driver.
        """
        if self._taken_by:
            raise RunError(
                f"{self._name} was taken over by another driver ({self._taken_by}) while this one was silent "
                f"for more than {STALE_S:.0f} s; the other one goes on with it"
            )

    def _owner(self) -> Mapping[str, Any]:
        return self._study.user_attrs.get(ATTRIBUTE) or {}

    def _is_mine(self, owner: Mapping[str, Any]) -> bool:
        return {key: owner.get(key) for key in self._me} == self._me

    def _refuse_others(self, name: str) -> None:
        owner = self._owner()
        if owner and not self._is_mine(owner) and _lives(owner, self._clock()):
            ago = self._clock() - owner["beat"]
            raise RunError(
                f"{name} is in use by another driver (host {owner['host']}, pid {owner['pid']}, last sign "
                f"{ago:.0f} s ago); stop it, choose another --out, or, if it is dead, try again in "
                f"{STALE_S:.0f} s"
            )

    def _beat(self) -> None:
        self._study.set_user_attr(ATTRIBUTE, {**self._me, "beat": self._clock()})

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_S):
            # A database may be away for a while, in which the driver itself has nothing to write. Where it
            # stays away, the driver's next write says so.
            with suppress(Exception):
                owner = self._owner()
                if owner and not self._is_mine(owner):
                    self._taken_by = f"host {owner['host']}, pid {owner['pid']}"
                    return
                self._beat()


def is_driven(study: optuna.Study, clock: Callable[[], float] = time.time) -> bool:
    """Whether a driver has the lease of a study, and lives."""
    owner = study.user_attrs.get(ATTRIBUTE) or {}
    return bool(owner) and _lives(owner, clock())


def _lives(owner: Mapping[str, Any], now: float) -> bool:
    if owner["host"] == socket.gethostname():
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
    return now - float(owner["beat"]) < STALE_S
