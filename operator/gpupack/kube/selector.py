"""Label selectors as the API writes them: `matchLabels` and `matchExpressions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """`operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...]

    def admits(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case "In":
                return labels.get(self.key) in self.values
            case _:
                return labels.get(self.key) not in self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """All requirements must be met. The schema refuses an empty one, which would select everything."""

    requirements: tuple[Requirement, ...]

    def selects(self, labels: Mapping[str, str]) -> bool:
        return all(each.admits(labels) for each in self.requirements)


def selector_of(fields: Mapping[str, Any]) -> Selector:
    exact = [
        Requirement(key=key, operator="In", values=(value,)) for key, value in fields.get("matchLabels", {}).items()
    ]
    told = [
        Requirement(key=each["key"], operator=each["operator"], values=tuple(each.get("values", ())))
        for each in fields.get("matchExpressions", ())
    ]
    return Selector(requirements=(*exact, *told))
