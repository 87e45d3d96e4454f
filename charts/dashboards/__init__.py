"""gpupack's Grafana dashboards, as code: what each asks Prometheus for, and how it is shown.

`DASHBOARDS` are written to files that chart and kustomization ship (`pytest tests/dashboards --regenerate`). They are
built with Grafana's own Foundation SDK, which is needed here and nowhere else.
"""

from __future__ import annotations

from dashboards.fleet import FLEET
from dashboards.page import Page
from dashboards.pool import POOL
from dashboards.serving import SERVING

DASHBOARDS: tuple[Page, ...] = (FLEET, POOL, SERVING)
