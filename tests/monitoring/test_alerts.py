"""Each alert fires when it shall and not before, and leads to a page that says what to do."""

from __future__ import annotations

from pathlib import Path

import yaml
from dev.monitoring import example
from dev.monitoring.prometheus import promtool
from tests.api.test_chart import CHART, objects
from tests.monitoring.chart import rendered

ROOT = CHART.parents[1]
RULES = CHART / "files" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}


def test_promtool_finds_no_fault_in_the_rules_that_the_chart_installs(tmp_path: Path) -> None:
    (rule,) = objects(rendered(), "PrometheusRule").values()
    installed = tmp_path / "rules.yaml"
    installed.write_text(yaml.safe_dump(rule["spec"]))
    for path in (RULES, installed):
        assert f"{len(ALERTS)} rules found" in promtool("check", "rules", "--lint=all", str(path))


def test_each_alert_fires_on_its_fault_and_on_nothing_else() -> None:
    promtool("test", "rules", str(CASES))
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        case["alertname"]
        for test in cases
        for case in test.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert fired == set(ALERTS)


def test_each_alert_leads_to_its_runbook() -> None:
    pages = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md")}
    assert {rule["annotations"]["runbook_url"] for rule in ALERTS.values()} == set(pages)
    for name, rule in ALERTS.items():
        page = pages[rule["annotations"]["runbook_url"]]
        assert f"Alert `{name}`." in page
        for heading in ("## What it means", "## See it", "## What to do"):
            assert heading in page, name
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_address_of_runbooks_is_the_installations_own() -> None:
    text = rendered("monitoring.rules.runbookUrl=https://docs.example/runbooks/%s/")
    (rule,) = objects(text, "PrometheusRule").values()
    urls = {r["annotations"]["runbook_url"] for g in rule["spec"]["groups"] for r in g["rules"]}
    assert "https://docs.example/runbooks/nobody-leads/" in urls
    assert len(urls) == len(ALERTS)


def test_the_example_without_the_prometheus_operator_is_what_the_pod_monitors_say() -> None:
    assert example.FILE.read_text() == example.text(), "run: python -m dev.monitoring.example"
    promtool("check", "config", "--syntax-only", str(example.FILE))
