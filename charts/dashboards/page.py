"""A dashboard in our own few words (page, row, panel, query, unit), and its JSON by Grafana's Foundation SDK.

Knows nothing of gpupack's series; `series.py` beside this does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

COLUMNS = 24
HEIGHT, LOW = 8, 4
TAG = "gpupack"
SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")


class Unit(StrEnum):
    """By Grafana's names; a value is in the base unit and Grafana scales it."""

    COUNT = "none"
    RATIO = "percentunit"
    BYTES = "bytes"
    SECONDS = "s"
    TOKENS = "si:tok"
    TOKENS_PER_SECOND = "si:tok/s"
    REQUESTS_PER_SECOND = "reqps"
    PER_SECOND = "cps"
    WATTS = "watt"
    JOULES_PER_TOKEN = "si:J/tok"


class Look(StrEnum):
    LINES = "timeseries"
    NUMBER = "stat"
    TABLE = "table"
    STATES = "state-timeline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """PromQL and how its series are called. `unit` where it is not the panel's (columns of a table)."""

    expr: str
    legend: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`meaning` is what a reader should know before judging by it.

    A table merges what its queries say of the same labels.
    """

    title: str
    meaning: str
    unit: Unit
    queries: tuple[Query, ...]
    look: Look = Look.LINES
    width: int = 8
    most: float | None = None
    stacked: bool = False

    def unit_of(self, query: Query) -> Unit:
        return query.unit or self.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A variable at the top of the page: one of the values of `label` of the series."""

    name: str
    series: str

    @property
    def query(self) -> str:
        return f"label_values({self.series}, {self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`name` is the dashboard's uid and its file's name."""

    name: str
    title: str
    meaning: str
    choices: tuple[Choice, ...]
    rows: tuple[Row, ...]

    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels

    def text(self) -> str:
        """The JSON that Grafana reads; equal pages give equal text."""
        return json.dumps(_dashboard(self), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _dashboard(page: Page) -> models.Dashboard:
    dashboard = (
        builders.Dashboard(page.title)
        .uid(page.name)
        .description(page.meaning)
        .tags([TAG])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("gpupack")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for choice in page.choices:
        dashboard.with_variable(
            builders.QueryVariable(choice.name)
            .query(choice.query)
            .datasource(SOURCE)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
        )
    numbers = count(1)
    for row in page.rows:
        dashboard.with_row(builders.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            dashboard.with_panel(_panel(panel, next(numbers)))
    built = dashboard.build()
    for variable in built.templating.list_val or ():
        # The SDK gives them to every variable; the schema, and Grafana, know them of intervals alone.
        variable.auto = variable.auto_min = variable.auto_count = None
    return built


def _panel(panel: Panel, number: int) -> timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel:
    match panel.look:
        case Look.LINES:
            shown: timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel = _lines(panel)
        case Look.NUMBER:
            last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
            shown = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).reduce_options(last)
        case Look.TABLE:
            shown = _table(panel)
        case Look.STATES:
            shown = statetimeline.Panel().show_value(common.VisibilityMode.NEVER).mappings([_YES_NO])
    shown.id(number).title(panel.title).description(panel.meaning).unit(panel.unit.value).datasource(SOURCE)
    shown.span(panel.width).height(LOW if panel.look is Look.NUMBER else HEIGHT).min(0)
    if panel.most is not None:
        shown.max(panel.most)
    for letter, query in zip("ABCDEFGHIJKL", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(SOURCE)
        if panel.look is Look.TABLE:
            target.instant().format(PromQueryFormat.TABLE)
        elif panel.look is Look.NUMBER:
            target.instant()
        else:
            target.range()
        shown.with_target(target)
    return shown


_YES_NO = models.ValueMap(
    options={
        "0": models.ValueMappingResult(text="no", color="transparent", index=0),
        "1": models.ValueMappingResult(text="yes", color="blue", index=1),
    }
)


def _lines(panel: Panel) -> timeseries.Panel:
    shown = (
        timeseries.Panel()
        .fill_opacity(20 if panel.stacked else 0)
        .line_width(1)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if panel.stacked:
        shown.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return shown


def _table(panel: Panel) -> table.Panel:
    """One line for each set of labels; each query is a column under its legend, in its own unit."""
    shown = table.Panel().with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    names = {f"Value #{letter}": query.legend for letter, query in zip("ABCDEFGHIJKL", panel.queries, strict=False)}
    shown.with_transformation(
        models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names}
        )
    )
    for query in panel.queries:
        shown.override_by_name(
            query.legend, [models.DynamicConfigValue(id_val="unit", value=panel.unit_of(query).value)]
        )
    return shown
