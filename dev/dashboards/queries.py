"""The forms that queries and panels of the dashboards have."""

from __future__ import annotations

from dev.dashboards.panels import Panel, Query

RATE = "[$__rate_interval]"


def rate(series: str, by: str = "") -> str:
    """PromQL: how much a counter grows a second, summed by the labels of ``by``."""
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({series}{RATE}))"


def quantile(share: float, series: str, by: str = "") -> str:
    """PromQL: a quantile (``share``, 0 to 1) of a histogram, by the labels of ``by``."""
    of = f"{by}, le" if by else "le"
    name, _, chosen = series.partition("{")
    bucket = f"{name}_bucket" + (f"{{{chosen}" if chosen else "")
    return f"histogram_quantile({share}, sum by ({of}) (rate({bucket}{RATE})))"


def graph(title: str, unit: str, *queries: tuple[str, str], meaning: str = "") -> Panel:
    """A panel of lines; each query is an expression and its legend."""
    return Panel(title, unit, tuple(Query(*query) for query in queries), meaning)


def stack(title: str, unit: str, expression: str, legend: str, meaning: str = "") -> Panel:
    """A panel whose lines add up."""
    return Panel(title, unit, (Query(expression, legend),), meaning, stacked=True)
