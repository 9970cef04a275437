"""A real Prometheus (Debian's) that scrapes operator and agents, with our alerts, and the dashboards' queries."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import paths
from .cluster import Cluster, KubectlError, Object
from .control_plane import free_ports
from .processes import Processes, tail, wait_until

OPERATOR = "app.kubernetes.io/component=operator"
OPERATOR_PORT = 7480
AGENT_PORT = 7410


@dataclass(frozen=True)
class Query:
    dashboard: str
    panel: str
    expression: str
    legend: str = ""  # as Grafana's, with {{label}}

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.expression}"


def dashboard_queries() -> list[Query]:
    """Every target of every panel of config/dashboards/*.json, its variables matching all."""
    queries = []
    for file in sorted((paths.REPOSITORY / "config" / "dashboards").glob("*.json")):
        dashboard = json.loads(file.read_text())
        variables = [x["name"] for x in dashboard.get("templating", {}).get("list", [])]
        panels = list(dashboard.get("panels", []))
        while panels:
            panel = panels.pop(0)
            panels += panel.get("panels", [])  # a row holds more
            for target in panel.get("targets", []):
                text = target["expr"]
                for name, value in (
                    ("__rate_interval", "5m"),
                    ("__interval", "5s"),
                    ("__range", "15m"),
                    *((name, ".*") for name in variables),
                ):
                    text = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b|\[\[{name}\]\]", value, text)
                legend = target.get("legendFormat", "")
                queries.append(Query(file.name, panel.get("title", "?"), text, legend))
    return queries


class Prometheus:
    """Scrapes by way of the API server, so it works wherever the cluster is. Context manager.

    Debian's build cannot discover pods itself; a thread writes the targets to a file for it.
    """

    def __init__(self, cluster: Cluster, operator_namespace: str) -> None:
        self.cluster, self.operator_namespace = cluster, operator_namespace
        self.folder = Path(tempfile.mkdtemp(prefix="rouse-prometheus-"))
        self.port = free_ports(1)[0]
        self.processes = Processes(self.folder)
        self._targets = self.folder / "targets.json"
        self._stop = threading.Event()
        self._discoverer = threading.Thread(target=self._discover, name="discover", daemon=True)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(paths.REPOSITORY / "config" / "alerts" / "*.yaml")],
            "scrape_configs": [
                {
                    "job_name": "rouse",
                    # As the chart's ServiceMonitor: rouse_instances is of another namespace.
                    "honor_labels": True,
                    "file_sd_configs": [
                        {"files": [str(self._targets)], "refresh_interval": "1s"},
                    ],
                }
            ],
        }
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        self.processes.start(
            "prometheus",
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={self.folder}/data"]
            + [f"--web.listen-address=127.0.0.1:{self.port}"],
        )
        try:
            wait_until("Prometheus to be ready", 30, self._ready)
        except BaseException:
            self.close()
            raise
        self._discoverer.start()

    def _discover(self) -> None:
        api = self.cluster.proxy_url().removeprefix("http://")
        before = ""
        while not self._stop.wait(1):
            try:
                text = json.dumps(
                    [
                        self._target(api, "rouse-operator", OPERATOR_PORT, pod)
                        for pod in self.cluster.list("pods", self.operator_namespace, OPERATOR)
                    ]
                    + [
                        self._target(api, "rouse-agent", AGENT_PORT, pod)
                        for pod in self.cluster.list("pods", "*", "rouse.dev/modelservice")
                    ]
                )
            except (KubectlError, subprocess.TimeoutExpired, ValueError):
                continue  # the next round may do better; tests see which targets are up
            if text != before:
                partial = self._targets.with_suffix(".partial")
                partial.write_text(text)
                partial.rename(self._targets)
                before = text

    @staticmethod
    def _target(api: str, job: str, port: int, pod: Object) -> Object:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        # As the chart's PodMonitor.
        service = pod["metadata"]["labels"].get("rouse.dev/modelservice")
        return {
            "targets": [api],
            "labels": {
                "__metrics_path__": f"/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics",
                "job": job,
                "namespace": namespace,
                "pod": name,
                "instance": f"{namespace}/{name}",
                **({"modelservice": service} if service else {}),
            },
        }

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read()

    def _ready(self) -> bool:
        if not self.processes.alive("prometheus"):
            raise RuntimeError(f"Prometheus ended:\n{tail(self.folder / 'prometheus.log')}")
        try:
            self._get("/-/ready")
            return True
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query."""
        text = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        data = json.loads(text)["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(x["metric"], float(x["value"][1])) for x in data["result"]]

    def query_range(
        self, expression: str, begin: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels, and times with values, of each series."""
        asked = {"query": expression, "start": begin, "end": end, "step": step}
        text = self._get("/api/v1/query_range?" + urllib.parse.urlencode(asked))
        result = json.loads(text)["data"]["result"]
        return [(x["metric"], [(t, float(value)) for t, value in x["values"]]) for x in result]

    def has_data(self, expression: str) -> bool:
        """Whether the query answers with at least one number (NaN is none)."""
        return any(not math.isnan(value) for _, value in self.query(expression))

    def targets(self) -> list[dict[str, Any]]:
        return json.loads(self._get("/api/v1/targets"))["data"]["activeTargets"]

    def rules(self) -> list[dict[str, Any]]:
        """Each with its health, its last error, and its alerts with their state."""
        groups = json.loads(self._get("/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def close(self) -> None:
        self._stop.set()
        if self._discoverer.is_alive():
            self._discoverer.join(60)
        self.processes.end_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
