"""The light cluster: a real control plane on loopback, and kwok in the place of nodes.

For operator tests that need no engine: pods are scheduled and become Running and Ready, but
nothing runs. Several can run at once; each takes free ports of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .cluster import Cluster
from .control_plane import ControlPlane, Options
from .processes import Processes


class LightCluster(Cluster):
    def __init__(
        self,
        folder: Path | None = None,
        options: Options | None = None,
        nodes: int = 1,
        keep: bool = False,
    ) -> None:
        """Starts it. `folder` holds its state and logs, by default a temporary one."""
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="rouse-light-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(self.folder, keep)
        self.options = options or Options()
        self.control_plane = ControlPlane(self.folder, self.processes, self.options)
        super().__init__(self.control_plane.kubeconfig())
        try:
            self.control_plane.create_identities()
            self.control_plane.start()
            if self.options.kwok:
                for number in range(nodes):
                    self.add_node(f"node-{number}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        self.processes.end_all()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def collect(self, folder: Path) -> None:
        super().collect(folder)
        for log in self.folder.glob("*.log"):
            shutil.copy(log, folder / f"cluster.{log.name}")

    def add_node(self, name: str, pods: int = 1000) -> None:
        """A node that kwok plays."""
        self.add_nodes([name], pods)

    def add_nodes(self, names: list[str], pods: int = 1000) -> None:
        room = {"cpu": "1000", "memory": "10Ti", "pods": str(pods)}
        self.apply(
            [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": name,
                        "annotations": {"kwok.x-k8s.io/node": "fake"},
                        "labels": {"kubernetes.io/hostname": name, "type": "kwok"},
                    },
                    "status": {"allocatable": room, "capacity": room},
                }
                for name in names
            ]
        )
