"""`gpupack operator` that also writes every observation to a file, one pickle after another.

    python e2e/bench/recording_operator.py FILE [arguments of gpupack operator]

The benchmarks start it in the operator's place, so that what it saw can be asked again afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import sys
from pathlib import Path

from gpupack import handlers
from gpupack.decide.reconcile import reconcile
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Observation
from gpupack.plan import Outcome


def main() -> None:
    file, *rest = sys.argv[1:]
    parser = argparse.ArgumentParser(description=__doc__)
    handlers.configure(parser)
    asked = parser.parse_args(rest)
    handlers.configure_logging(asked.log_format, asked.log_level)
    with Path(file).open("ab", buffering=0) as trace:

        def recorded(observation: Observation, facts: Facts) -> Outcome:
            outcome = reconcile(observation, facts)
            trace.write(pickle.dumps(observation))
            return outcome

        asyncio.run(
            handlers.operate(
                kubeconfig=asked.kubeconfig, pod_proxy=asked.pod_proxy, host=asked.host,
                metrics_port=asked.metrics_port, health_port=asked.health_port, reconcile=recorded,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
