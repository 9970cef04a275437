"""Looks all the time at who is in a Service's endpoints, while instances sleep and wake."""

from __future__ import annotations

import threading

from rouse_e2e.story import Instance, Story


class Watch:
    """Looks all the time at who is in the Service's endpoints: a guard never is."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.looks = 0
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def ready(self) -> set[str]:
        """The pods that requests to the Service may reach."""
        return self.story.cluster.ready_endpoints(self.story.name, self.story.namespace)

    def _asleep(self) -> set[str]:
        path = f"/api/v1/namespaces/{self.story.namespace}/pods"
        pods = [Instance(x) for x in self.story.cluster.request("GET", path).json()["items"]]
        states = ("Sleeping", "Asleep", "Waking")
        return {x.name for x in pods if x.annotation("agent-state") in states}

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                # Asleep before and after that look: it slept meanwhile.
                before = self._asleep()
                ready = self.ready()
                self.wrong += sorted(before & self._asleep() & ready)
                self.looks += 1
            except (OSError, ValueError, KeyError) as error:
                self.errors.append(str(error))
