"""Runs the command line in this process and shows what a user would see."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from autoprune.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def is_refusal(self, *fragments: str) -> bool:
        """One line on standard error, exit code 2, and all of ``fragments`` in it."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in lines[0], lines[0]
        return True


@pytest.fixture
def autoprune(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
