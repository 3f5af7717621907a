"""The Grafana dashboard: it names no metric that is not there, and leaves none out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
HISTOGRAM = re.compile(r"_(bucket|count|sum)$")


def _dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "grafana" / "cacheserver.json").read_text(encoding="utf-8"))
    return found


def _expressions() -> list[str]:
    return [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", ())]


def _documented() -> dict[str, set[str]]:
    """Metrics with their labels, by the table of docs/operations.md, which is that of a real daemon (test_metrics)."""
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(cacheserver_\w+)(?:\{([\w,]+)\})?`", text, re.M)
    return {name: set(labels.split(",")) - {""} for name, labels in rows}


def _named(expression: str) -> set[str]:
    found = set(re.findall(r"cacheserver_\w+", expression))
    return {HISTOGRAM.sub("", name) if HISTOGRAM.sub("", name) in _documented() else name for name in found}


def test_every_metric_of_the_dashboard_is_there_and_none_is_left_out() -> None:
    """In the panels' questions; histograms by their buckets and counts."""
    assert set().union(*map(_named, _expressions())) == set(_documented())


def test_labels_are_those_of_the_metrics() -> None:
    """What it selects by, adds up by and shows."""
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression, known = target["expr"], {"instance", "le"}
            for name in _named(expression):
                known |= _documented()[name]
            used = set(re.findall(r"(\w+)(?:=|!=|=~)\"", expression))
            used |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            used |= {one.strip() for some in re.findall(r"by \(([^)]*)\)", expression) for one in some.split(",")}
            assert used <= known, expression


def test_panels_are_as_grafana_takes_them() -> None:
    """Each with a title, a place of its own and an id of its own; the source of data and the host can be chosen."""
    dashboard = _dashboard()
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["title"] for panel in panels)
    places = [(p["gridPos"]["x"] + i, p["gridPos"]["y"]) for p in panels for i in range(p["gridPos"]["w"])]
    assert len(set(places)) == len(places) and max(x for x, _ in places) < 24
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource", "instance"]
    assert {t["datasource"]["uid"] for p in panels for t in p.get("targets", ())} == {"${datasource}"}


def test_prometheus_can_read_the_questions(tmp_path: Path) -> None:
    """`promtool check rules` of each, with Grafana's variables filled in."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: it comes with Debian's package prometheus")
    rules = [
        {"record": f"r{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, expression in enumerate(_expressions())
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ("promtool", "check", "rules", str(tmp_path / "rules.yml")), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
