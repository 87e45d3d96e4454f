"""Experiments and what was undone, in the plan of a pool's status and back.

Numbers that are not whole are texts that read back as the same float: the schema has no floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupack.facts.experiment import Compared, Experiment, Inputs, Judgement, Standing, Undone
from gpupack.kube.shape_resource import serving_key_of, shape_of, shape_to_dict
from gpupack.kube.times import rfc3339_micro, seconds_of
from gpupack.units import PerSecond, Ratio, Seconds


def experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    return _written(
        {
            "serving": str(experiment.serving),
            "gpu": experiment.gpu_uuid,
            "step": experiment.step,
            "beganAt": rfc3339_micro(experiment.began_at),
            "lastAt": rfc3339_micro(experiment.last_at),
            "asked": experiment.asked,
            "before": [_standing_to_dict(each) for each in experiment.before],
            "company": experiment.company,
            "gain": _text(experiment.gain),
            "saturation": repr(experiment.saturation),
            "itlSeconds": repr(experiment.itl),
            "inputs": experiment.inputs,
            "doubtedAt": None if experiment.doubted_at is None else rfc3339_micro(experiment.doubted_at),
            "judgement": None if experiment.judgement is None else experiment.judgement.value,
            "judgedAt": None if experiment.judged_at is None else rfc3339_micro(experiment.judged_at),
            "undone": experiment.undone,
            "compared": [compared_to_dict(each) for each in experiment.compared],
            "why": experiment.why,
        }
    )


def experiment_of(fields: Mapping[str, Any]) -> Experiment:
    """Raises KeyError or ValueError for what was not written by `experiment_to_dict`."""
    return Experiment(
        serving=serving_key_of(fields["serving"]),
        gpu_uuid=fields["gpu"],
        step=fields["step"],
        began_at=seconds_of(fields["beganAt"]),
        last_at=seconds_of(fields["lastAt"]),
        asked=fields["asked"],
        before=tuple(_standing(each) for each in fields["before"]),
        company=fields["company"],
        gain=Ratio(float(fields["gain"])) if "gain" in fields else None,
        saturation=Ratio(float(fields["saturation"])),
        itl=Seconds(float(fields["itlSeconds"])),
        inputs=fields["inputs"],
        doubted_at=seconds_of(fields["doubtedAt"]) if "doubtedAt" in fields else None,
        judgement=Judgement(fields["judgement"]) if "judgement" in fields else None,
        judged_at=seconds_of(fields["judgedAt"]) if "judgedAt" in fields else None,
        undone=fields["undone"],
        compared=tuple(_compared(each) for each in fields["compared"]),
        why=fields["why"],
    )


def undone_to_dict(undone: Undone) -> dict[str, Any]:
    inputs = undone.inputs
    return _written(
        {
            "serving": str(undone.serving),
            "model": undone.model,
            "gpuKind": undone.gpu_kind,
            "neighbours": undone.neighbours,
            "at": rfc3339_micro(undone.at),
            "until": rfc3339_micro(undone.until),
            "compared": compared_to_dict(undone.compared),
            "inputs": None if inputs is None else {
                "requestsPerSecond": repr(inputs.rate),
                "inputTokens": repr(inputs.input_mean),
                "outputTokens": repr(inputs.output_mean),
            },
        }
    )  # fmt: skip


def undone_of(fields: Mapping[str, Any]) -> Undone:
    """Raises KeyError or ValueError for what was not written by `undone_to_dict`."""
    return Undone(
        serving=serving_key_of(fields["serving"]),
        model=fields["model"],
        gpu_kind=fields["gpuKind"],
        neighbours=fields["neighbours"],
        at=seconds_of(fields["at"]),
        until=seconds_of(fields["until"]),
        compared=_compared(fields["compared"]),
        inputs=_inputs(fields["inputs"]) if "inputs" in fields else None,
    )


def compared_to_dict(compared: Compared) -> dict[str, Any]:
    return {
        "what": compared.what,
        "subject": compared.subject,
        "predicted": repr(compared.predicted),
        "measured": repr(compared.measured),
        "unit": compared.unit,
    }


def _compared(fields: Mapping[str, Any]) -> Compared:
    return Compared(
        what=fields["what"],
        subject=fields["subject"],
        predicted=float(fields["predicted"]),
        measured=float(fields["measured"]),
        unit=fields["unit"],
    )


def _standing_to_dict(standing: Standing) -> dict[str, Any]:
    return _written(
        {
            "serving": str(standing.serving),
            "shape": shape_to_dict(standing.shape),
            "engines": standing.engines,
            "offBy": _text(standing.off),
            "tokensPerSecond": _text(standing.tokens_per_second),
        }
    )


def _standing(fields: Mapping[str, Any]) -> Standing:
    return Standing(
        serving=serving_key_of(fields["serving"]),
        shape=shape_of(fields["shape"]),
        engines=fields["engines"],
        off=Ratio(float(fields["offBy"])) if "offBy" in fields else None,
        tokens_per_second=float(fields["tokensPerSecond"]) if "tokensPerSecond" in fields else None,
    )


def _inputs(fields: Mapping[str, Any]) -> Inputs:
    return Inputs(
        rate=PerSecond(float(fields["requestsPerSecond"])),
        input_mean=float(fields["inputTokens"]),
        output_mean=float(fields["outputTokens"]),
    )


def _text(value: float | None) -> str | None:
    return None if value is None else repr(value)


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no value: absent is not zero."""
    return {name: value for name, value in fields.items() if value is not None}
