"""The two kinds of failure that gpupack expects; any other exception is a bug.

Sentences are for a tired operator: what is wrong, and what would be accepted.
"""

from __future__ import annotations


class Invalid(Exception):
    """What the user wrote cannot be carried out. It becomes a condition or exit status 2 and waits for the user.

    `field` is the path as the user wrote it (`spec.slo.itlMilliseconds`, `--gpu`), `fix` says what would be accepted.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        super().__init__(f"{field}: {problem}; {fix}")
        self.field = field
        self.problem = problem
        self.fix = fix


class Unavailable(Exception):
    """Something outside gpupack did not answer or is not there; trying again later may help."""
