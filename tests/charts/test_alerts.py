"""The alerts of the chart, by Prometheus's own promtool: well formed, and each fires once in a story of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "charts" / "gpupack" / "files" / "alerts.yaml"
STORIES = Path(__file__).parent / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    body: Mapping[str, Any]

    def annotations(self, labels: Mapping[str, str]) -> dict[str, str]:
        """As Prometheus fills them in."""
        return {key: LABEL.sub(lambda found: labels[found[1]], text) for key, text in self.body["annotations"].items()}


def rules() -> dict[str, Rule]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {each["alert"]: Rule(each["alert"], each) for group in groups for each in group["rules"]}


def promtool(*arguments: str | Path) -> str:
    """What it prints; the assertion holds it if something is wrong."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: it comes with Prometheus (apt-get install prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_alerts() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


def test_every_alert_has_a_story() -> None:
    assert [each["alert"] for each in yaml.safe_load(STORIES.read_text())] == list(rules())


def test_each_alert_fires_when_its_story_says_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "stories.yaml"
    tests = [promtools(story) for story in yaml.safe_load(STORIES.read_text())]
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", path)


def test_a_story_that_is_not_true_is_told(tmp_path: Path) -> None:
    story, *_ = yaml.safe_load(STORIES.read_text())
    path = tmp_path / "story.yaml"
    early = promtools({**story, "fires": story["quiet"]})
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [early]}))
    with pytest.raises(AssertionError, match=re.escape(story["story"])):
        promtool("test", "rules", path)


def promtools(story: Mapping[str, Any]) -> dict[str, Any]:
    """A story in promtool's words, which wants every annotation of an alert that fires."""
    rule = rules()[story["alert"]]
    annotations = rule.annotations(story["labels"])
    assert annotations["summary"] == story["summary"]
    fired = {"exp_labels": {**rule.body["labels"], **story["labels"]}, "exp_annotations": annotations}
    asked = [
        {"alertname": rule.name, "eval_time": story["quiet"], "exp_alerts": []},
        {"alertname": rule.name, "eval_time": story["fires"], "exp_alerts": [fired]},
    ]
    series = [{"series": name, "values": str(values)} for name, values in story["series"].items()]
    return {"name": story["story"], "interval": "1m", "input_series": series, "alert_rule_test": asked}


def page() -> str:
    """The runbooks for people who come by a link: the same words as in the alert."""
    lines = [
        "# Runbooks",
        "",
        "What each alert of the chart means, and what to look at first. The same words are in the alert itself; this",
        "page is written from `charts/gpupack/files/alerts.yaml`.",
    ]
    for rule in rules().values():
        told, severity = rule.annotations(_Named()), rule.body["labels"]["severity"]
        lines += ["", f"## {rule.name}", "", f"*{severity}*, after {rule.body['for']}. {told['summary']}"]
        lines += ["", told["description"], "", f"**What to do.** {told['runbook']}"]
        lines += ["", "```promql", rule.body["expr"], "```"]
    return "\n".join((*lines, ""))


class _Named(dict[str, str]):
    """A label by its own name, in capitals: angle brackets would be HTML to the page's readers."""

    def __missing__(self, key: str) -> str:
        return key.upper()


def test_the_page_of_runbooks_says_what_the_alerts_say(regenerating: bool) -> None:
    if regenerating:
        RUNBOOKS.parent.mkdir(exist_ok=True)
        RUNBOOKS.write_text(page())
    assert RUNBOOKS.read_text() == page(), "pytest tests/charts --regenerate writes it"
