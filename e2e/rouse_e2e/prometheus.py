"""A real Prometheus (Debian's) that scrapes operator and agents, and the dashboards' queries."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import paths
from .cluster import Cluster
from .control_plane import free_ports
from .processes import Processes, tail, wait_until


@dataclass(frozen=True)
class Query:
    dashboard: str
    panel: str
    expression: str

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
                queries.append(Query(file.name, panel.get("title", "?"), text))
    return queries


class Prometheus:
    """Scrapes by way of the API server, so it works wherever the cluster is. Context manager."""

    def __init__(self, cluster: Cluster, operator_namespace: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rouse-prometheus-"))
        self.port = free_ports(1)[0]
        self.processes = Processes(self.folder)
        api = cluster.proxy_url()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [
                self._job(
                    "rouse-operator",
                    api,
                    "7480",
                    {
                        "__meta_kubernetes_namespace": operator_namespace,
                        "__meta_kubernetes_pod_container_name": "operator",
                    },
                ),
                self._job(
                    "rouse-agent",
                    api,
                    "7410",
                    {
                        "__meta_kubernetes_pod_labelpresent_rouse_dev_modelservice": "true",
                        "__meta_kubernetes_pod_container_name": "engine",
                    },
                ),
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

    @staticmethod
    def _job(name: str, api: str, port: str, keep: dict[str, str]) -> dict[str, Any]:
        pod = ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"]
        return {
            "job_name": name,
            "kubernetes_sd_configs": [{"role": "pod", "api_server": api}],
            "relabel_configs": [
                *(
                    {"source_labels": [label], "regex": value, "action": "keep"}
                    for label, value in keep.items()
                ),
                {
                    "source_labels": pod,
                    "regex": "(.+);(.+)",
                    "target_label": "__metrics_path__",
                    "replacement": f"/api/v1/namespaces/$1/pods/$2:{port}/proxy/metrics",
                },
                {"source_labels": pod[:1], "target_label": "namespace"},
                {"source_labels": pod[1:], "target_label": "pod"},
                {
                    "source_labels": pod,
                    "separator": "/",
                    "target_label": "instance",
                },
                {"target_label": "__address__", "replacement": api.removeprefix("http://")},
            ],
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

    def has_data(self, expression: str) -> bool:
        """Whether the query answers with at least one number (NaN is none)."""
        return any(not math.isnan(value) for _, value in self.query(expression))

    def targets(self) -> list[dict[str, Any]]:
        return json.loads(self._get("/api/v1/targets"))["data"]["activeTargets"]

    def close(self) -> None:
        self.processes.end_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
