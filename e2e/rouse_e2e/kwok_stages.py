"""kwok's own stages, and readiness gates as a kubelet has them.

kwok says of every gate of a pod that it is open, and never looks again. A kubelet leaves a gate's
condition to whom it belongs to, and the pod is ready while all of them, and its containers, are. An
instance that sleeps, or is about to, or wakes, is not: its agent's probe says so.
"""

from __future__ import annotations

from typing import Any

import yaml

GATE = "rouse.dev/serving"
NOT_READY = ["Sleeping", "Asleep", "Waking"]  # of the states that an agent reports

Stage = dict[str, Any]


def _is(condition: str, operator: str) -> Stage:
    key = f'.status.conditions.[] | select( .type == "{condition}" ) | .status'
    return {"key": key, "operator": operator, "values": ["True"]}


def _reported(operator: str) -> Stage:
    key = '.metadata.annotations["rouse.dev/agent-state"]'
    return {"key": key, "operator": operator, "values": NOT_READY}


def _follow(name: str, ready: str, *when: Stage) -> Stage:
    """A pod of which all of `when` is true and whose readiness is another becomes `ready`."""
    other = "NotIn" if ready == "True" else "In"
    template = f'conditions:\n- {{type: Ready, status: "{ready}", lastTransitionTime: {{{{ Now | Quote }}}}}}\n'
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {
                "matchExpressions": [
                    {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
                    {"key": ".status.phase", "operator": "In", "values": ["Running"]},
                    {
                        "key": ".spec.readinessGates.[].conditionType",
                        "operator": "In",
                        "values": [GATE],
                    },
                    *when,
                    _is("Ready", other),
                ]
            },
            "next": {"statusTemplate": template},
        },
    }


def with_gates(stages: str) -> str:
    """`stages`: kwok's own, as YAML documents."""
    documents = [x for x in yaml.safe_load_all(stages) if x]
    (ready,) = [x for x in documents if x["metadata"]["name"] == "pod-ready"]
    template: str = ready["spec"]["next"]["statusTemplate"]
    begin = template.index("{{ range .spec.readinessGates }}")
    end = template.index("{{ end }}", begin) + len("{{ end }}")
    template = template[:begin] + template[end:]
    status, kind = '  status: "True"\n', "  type: Ready\n"
    assert status + kind in template
    gated = '  status: {{ if .spec.readinessGates }}"False"{{ else }}"True"{{ end }}\n'
    ready["spec"]["next"]["statusTemplate"] = template.replace(status + kind, gated + kind)
    documents += [
        _follow("pod-gate-open", "True", _is(GATE, "In"), _reported("NotIn")),
        _follow("pod-gate-closed", "False", _is(GATE, "NotIn")),
        _follow("pod-engine-asleep", "False", _reported("In")),
    ]
    return yaml.safe_dump_all(documents, sort_keys=False)
