"""`gpupack predict`: what a setting does, by the closed form; the steady state, or with --requests a whole run."""

from __future__ import annotations

import argparse

from gpupack.cli.answer import of_prediction, print_answer
from gpupack.cli.arguments import add_common, options
from gpupack.cli.setting import Setting, setting
from gpupack.facts.policy import Policy
from gpupack.perf import batching, sharing
from gpupack.perf.prediction import GpuPrediction


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    given = options(args)
    asked = setting(given)
    print_answer(asked, of_prediction(asked, predict(asked)), given.json)
    return 0


def predict(asked: Setting) -> GpuPrediction:
    reserve = Policy().gpu_reserve
    if asked.requests is None:
        return sharing.predict(asked.gpu, asked.groups, asked.sharing, reserve)
    return batching.predict_run(asked.gpu, asked.groups, asked.sharing, asked.requests, reserve)
