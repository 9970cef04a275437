"""What the API server itself says to a ModelService, before any operator sees it.

Every bad object is the good one with one change, so that the message can only come from that.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from rouse_e2e.cluster import Cluster, Object
from rouse_e2e.processes import wait_until

from .conftest import MODELSERVICES

DELETE = object()


def good() -> Object:
    return {
        "apiVersion": "rouse.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "demo"},
        "spec": {
            "model": {
                "name": "Qwen/Qwen3-30B-A3B",
                "storage": {"persistentVolumeClaim": {"claimName": "models"}},
            },
            "engine": {"image": "vllm/vllm-openai:v0.26.0"},
        },
    }


def changed(change: dict[str, Any]) -> Object:
    """`change` maps a dotted path to a value, or to DELETE; '//' stands for a dot in a key."""
    result = copy.deepcopy(good())
    for path, value in change.items():
        *parents, last = [part.replace("//", ".") for part in path.split(".")]
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
    return result


def create(cluster: Cluster, thing: Object, dry_run: bool = True):
    query = "?fieldValidation=Strict&fieldManager=test" + ("&dryRun=All" if dry_run else "")
    return cluster.request("POST", MODELSERVICES + query, thing)


def message_of(answer) -> str:
    return answer.json().get("message", "") if answer.status >= 400 else "(accepted)"


# ---- refused

BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    # contradictions between fields
    "guards with the default profile": (
        {"spec.guards.replicas": 2},
        ["spec.guards", "must be 0 or unset with fastStart.profile Shared", "remove guards"],
    ),
    "guards with LazyCapture": (
        {"spec.guards.replicas": 1, "spec.fastStart.profile": "LazyCapture"},
        [
            "spec.guards",
            "profile LazyCapture, which keeps no guards",
            "set fastStart.profile to Guarded",
        ],
    ),
    "Guarded without guards": (
        {"spec.guards.replicas": 0, "spec.fastStart.profile": "Guarded"},
        ["spec.guards", "must be at least 1", "set fastStart.profile to Shared"],
    ),
    "state that is required but not reused": (
        {"spec.fastStart.state": {"reuse": False, "required": True}},
        ["spec.fastStart.state", "set reuse to true, or required to false"],
    ),
    "no fallback for storage": (
        {"spec.fastStart.weights": {"source": "Storage", "fallback": "None"}},
        ["spec.fastStart.weights", "remove fallback, or set source to Peer"],
    ),
    "a trigger for eager capture": (
        {"spec.fastStart.graphCapture": {"mode": "Eager", "trigger": "Idle"}},
        ["spec.fastStart.graphCapture", "remove it, or set graphCapture.mode to Lazy"],
    ),
    "a trigger where the profile captures eagerly": (
        {"spec.fastStart.graphCapture": {"trigger": "Idle"}},
        ["spec.fastStart.graphCapture", "set graphCapture.mode to Lazy"],
    ),
    "lazy capture with guards": (
        {"spec.fastStart": {"profile": "Guarded", "graphCapture": {"mode": "Lazy"}}},
        ["spec.fastStart.graphCapture", "set profile to LazyCapture"],
    ),
    "eager capture with LazyCapture": (
        {"spec.fastStart": {"profile": "LazyCapture", "graphCapture": {"mode": "Eager"}}},
        ["spec.fastStart.graphCapture", "set profile to Shared"],
    ),
    # where the model is
    "two storages": (
        {"spec.model.storage.hostPath": {"path": "/models"}},
        [
            "spec.model.storage",
            "exactly one of persistentVolumeClaim and hostPath",
            "remove the other",
        ],
    ),
    "no storage": (
        {"spec.model.storage": {}},
        ["spec.model.storage", "exactly one of persistentVolumeClaim and hostPath"],
    ),
    "storage left out": ({"spec.model.storage": DELETE}, ["spec.model.storage: Required value"]),
    "an absolute path in a volume": (
        {"spec.model.storage.persistentVolumeClaim.path": "/qwen3"},
        ["persistentVolumeClaim.path", "remove the leading '/'"],
    ),
    "a path out of the volume": (
        {"spec.model.storage.persistentVolumeClaim.path": "a/../../etc"},
        ["persistentVolumeClaim.path", "remove '..'"],
    ),
    "a relative host path": (
        {"spec.model.storage": {"hostPath": {"path": "models"}}},
        ["hostPath.path", "begin it with '/'"],
    ),
    "a claim without a name": (
        {"spec.model.storage": {"persistentVolumeClaim": {}}},
        ["persistentVolumeClaim.claimName: Required value"],
    ),
    "a model name with a space": (
        {"spec.model.name": "Qwen 3"},
        ["spec.model.name", "should match"],
    ),
    "no model": ({"spec.model": DELETE}, ["spec.model: Required value"]),
    # the engine
    "no image": ({"spec.engine": {}}, ["spec.engine.image: Required value"]),
    "an image with a space": (
        {"spec.engine.image": "vllm latest"},
        ["spec.engine.image", "should match"],
    ),
    "a pull policy that is none": (
        {"spec.engine.imagePullPolicy": "Sometimes"},
        ["spec.engine.imagePullPolicy", 'supported values: "Always", "IfNotPresent", "Never"'],
    ),
    "the load format among the arguments": (
        {"spec.engine.args": ["--enforce-eager", "--load-format", "dummy"]},
        ["spec.engine.args", "args must not have --load-format, Rouse sets it: remove it"],
    ),
    "the load format written with underscores": (
        {"spec.engine.args": ["--load_format=dummy"]},
        ["spec.engine.args", "args must not have --load_format, Rouse sets it"],
    ),
    "the loader's configuration among the arguments": (
        {"spec.engine.args": ["--model-loader-extra-config.socket=/tmp/x"]},
        ["spec.engine.args", "--model-loader-extra-config"],
    ),
    "the served name among the arguments": (
        {"spec.engine.args": ["--served-model-name=x"]},
        ["args must not have --served-model-name, Rouse sets it", "spec.model.name"],
    ),
    "the port among the arguments": (
        {"spec.engine.args": ["--port=9000"]},
        ["args must not have --port, Rouse sets it", "spec.engine.port"],
    ),
    "the model among the arguments": (
        {"spec.engine.args": ["--model", "/models/x"]},
        ["args must not have --model, Rouse sets it"],
    ),
    "PYTHONPATH": (
        {"spec.engine.env": [{"name": "PYTHONPATH", "value": "/x"}]},
        ["spec.engine.env", "must not set PYTHONPATH", "remove it"],
    ),
    "a name of ours in the environment": (
        {"spec.engine.env": [{"name": "ROUSE_SOCKET", "value": "/x"}]},
        ["spec.engine.env", "ROUSE_ belong to Rouse", "choose another name"],
    ),
    "a variable with two values": (
        {
            "spec.engine.env": [
                {"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}
            ]
        },
        ["spec.engine.env[0]", "value or valueFrom, not both"],
    ),
    "a variable twice": (
        {"spec.engine.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        ["spec.engine.env[1]", "Duplicate value"],
    ),
    "a variable that is no name": (
        {"spec.engine.env": [{"name": "1-A", "value": "1"}]},
        ["spec.engine.env[0].name", "should match"],
    ),
    "the agent's port": (
        {"spec.engine.port": 7411},
        ["spec.engine.port", "must not be 7410 or 7411", "choose another"],
    ),
    "a port out of range": (
        {"spec.engine.port": 70000},
        ["spec.engine.port", "less than or equal to 65535"],
    ),
    "a request above its limit": (
        {"spec.engine.resources": {"requests": {"memory": "8Gi"}, "limits": {"memory": "4096Mi"}}},
        ["spec.engine.resources", "must not be above resources.limits", "raise the limit"],
    ),
    "half a GPU": (
        {"spec.engine.resources": {"limits": {"nvidia.com/gpu": "0.5"}}},
        ["spec.engine.resources", "whole numbers"],
    ),
    "a requested GPU without a limit": (
        {"spec.engine.resources": {"requests": {"nvidia.com/gpu": 1}}},
        ["spec.engine.resources", "set them under limits only"],
    ),
    "a quantity that is none": (
        {"spec.engine.resources": {"limits": {"memory": "4 GB"}}},
        ["spec.engine.resources.limits.memory", "should match"],
    ),
    # the rest
    "fewer than no replicas": (
        {"spec.replicas": -1},
        ["spec.replicas", "greater than or equal to 0"],
    ),
    "too many replicas": ({"spec.replicas": 1001}, ["spec.replicas", "less than or equal to 1000"]),
    "replicas as text": ({"spec.replicas": "2"}, ["spec.replicas", "must be of type integer"]),
    "an unknown profile": (
        {"spec.fastStart.profile": "Fast"},
        ["spec.fastStart.profile", 'supported values: "Guarded", "LazyCapture", "Shared"'],
    ),
    "an unknown source": (
        {"spec.fastStart.weights.source": "Magic"},
        ["spec.fastStart.weights.source", 'supported values: "Peer", "Storage"'],
    ),
    "fewer than no copies": (
        {"spec.fastStart.state.copies": -1},
        ["spec.fastStart.state.copies", "greater than or equal to 0"],
    ),
    "too many copies": (
        {"spec.fastStart.state.copies": 17},
        ["spec.fastStart.state.copies", "less than or equal to 16"],
    ),
    "copies as text": (
        {"spec.fastStart.state.copies": "2"},
        ["spec.fastStart.state.copies", "must be of type integer"],
    ),
    "an unknown way to start processes": (
        {"spec.fastStart.processStart": "Thread"},
        ["spec.fastStart.processStart", 'supported values: "Fork", "Spawn"'],
    ),
    "a misspelt field": (
        {"spec.fastStart.profil": "Shared"},
        ['unknown field "spec.fastStart.profil"'],
    ),
    "our labels in the template": (
        {"spec.template": {"metadata": {"labels": {"rouse.dev/role": "Guard"}}}},
        ["spec.template.metadata.labels", "belong to Rouse"],
    ),
    "a name too long for pods": (
        {"metadata.name": "m" * 53},
        ["at most 52 characters", "choose a shorter name"],
    ),
    "a name with dots": (
        {"metadata.name": "qwen3.5"},
        ["metadata.name must not contain dots", "use '-' instead"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_modelservice_is_refused_with_what_to_change(api_with_crd: Cluster, case: str):
    change, expected = BAD[case]
    answer = create(api_with_crd, changed(change))
    message = message_of(answer)
    # fieldValidation=Strict answers 400 for unknown fields, validation 422
    assert answer.status in (400, 422), message
    for part in expected:
        assert part in message


# ---- accepted

GOOD: dict[str, dict[str, Any]] = {
    "the least that is possible": {},
    "Guarded with guards": {"spec.fastStart.profile": "Guarded", "spec.guards.replicas": 2},
    "Guarded with as many guards as the operator thinks right": {
        "spec.fastStart.profile": "Guarded"
    },
    "no guards, said": {"spec.guards.replicas": 0},
    "LazyCapture with a trigger": {
        "spec.fastStart": {"profile": "LazyCapture", "graphCapture": {"trigger": "Idle"}}
    },
    "Shared with lazy capture by hand": {
        "spec.fastStart.graphCapture": {"mode": "Lazy", "trigger": "FirstRequest"}
    },
    "peers or nothing": {"spec.fastStart.weights": {"source": "Peer", "fallback": "None"}},
    "no copies of caches": {"spec.fastStart.state.copies": 0},
    "as many copies of caches as may be": {"spec.fastStart.state": {"reuse": True, "copies": 16}},
    "a folder of the node": {"spec.model.storage": {"hostPath": {"path": "/srv/models/qwen3"}}},
    "arguments that only look like ours": {
        "spec.engine.args": [
            *("--model-impl=vllm", "--tensor-parallel-size", "8", "--portable"),
            *("--load-format-x", "--model_impl", "auto"),
        ]
    },
    "GPUs and quantities of every kind": {
        "spec.engine.resources": {
            "limits": {"nvidia.com/gpu": 8, "memory": "1Ti", "cpu": "64"},
            "requests": {"nvidia.com/gpu": "8", "memory": "900e9", "cpu": "500m"},
        }
    },
    "a variable from a secret": {
        "spec.engine.env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
            {"name": "OMP_NUM_THREADS", "value": "4"},
        ]
    },
    "any pod fields in the template": {
        "spec.template": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"example.com/x": "y"}},
            "spec": {
                "nodeSelector": {"gpu": "h200"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "containers": [
                    {"name": "engine", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
                ],
            },
        }
    },
    "the longest name": {"metadata.name": "m" * 52},
    "no replicas": {"spec.replicas": 0},
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_modelservice_is_accepted_and_kept_as_written(api_with_crd: Cluster, case: str):
    wanted = changed(GOOD[case])
    answer = create(api_with_crd, wanted)
    assert answer.status == 201, message_of(answer)
    assert_contains(answer.json()["spec"], wanted["spec"])


def assert_contains(found: Any, wanted: Any, where: str = "spec") -> None:
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert key in found, f"{where}.{key} was dropped"
            assert_contains(found[key], value, f"{where}.{key}")
    else:
        assert found == wanted, where


def test_defaults_are_filled_in_and_what_the_profile_decides_is_left_open(api_with_crd: Cluster):
    spec = create(api_with_crd, good()).json()["spec"]
    assert spec == {
        "replicas": 1,
        "model": {
            "name": "Qwen/Qwen3-30B-A3B",
            "revision": "main",
            "storage": {"persistentVolumeClaim": {"claimName": "models", "path": ""}},
        },
        "engine": {"image": "vllm/vllm-openai:v0.26.0", "port": 8000},
        "fastStart": {"profile": "Shared"},
    }


# ---- a stored object


@pytest.fixture
def stored(api_with_crd: Cluster):
    answer = create(api_with_crd, good(), dry_run=False)
    assert answer.status == 201, message_of(answer)
    yield api_with_crd
    api_with_crd.kubectl("delete", "modelservice", "demo")


def patch(cluster: Cluster, body: Any, subresource: str = ""):
    where = f"{MODELSERVICES}/demo" + (f"/{subresource}" if subresource else "")
    return cluster.request("PATCH", where, body, kind="application/merge-patch+json")


def test_kubectl_scale_changes_replicas_and_scale_reads_the_status(stored: Cluster):
    stored.kubectl("scale", "modelservice/demo", "--replicas=3")
    status = {"status": {"replicas": 2, "selector": "rouse.dev/modelservice=demo"}}
    assert patch(stored, status, "status").status == 200
    scale = stored.request("GET", f"{MODELSERVICES}/demo/scale").json()
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "rouse.dev/modelservice=demo"}


def test_scaling_out_of_bounds_is_refused(stored: Cluster):
    answer = stored.request(
        "PATCH",
        f"{MODELSERVICES}/demo/scale",
        {"spec": {"replicas": 1001}},
        kind="application/merge-patch+json",
    )
    assert answer.status == 422
    assert "spec.replicas" in message_of(answer)


def test_status_does_not_write_the_spec_nor_the_spec_the_status(stored: Cluster):
    assert (
        patch(stored, {"spec": {"replicas": 7}, "status": {"replicas": 1}}, "status").status == 200
    )
    assert patch(stored, {"spec": {"replicas": 5}, "status": {"replicas": 9}}).status == 200
    found = stored.get("modelservice", "demo")
    assert found["spec"]["replicas"] == 5
    assert found["status"]["replicas"] == 1


def test_the_models_name_cannot_be_changed(stored: Cluster):
    answer = patch(stored, {"spec": {"model": {"name": "other"}}})
    assert answer.status == 422
    assert "create another ModelService" in message_of(answer)
    assert patch(stored, {"spec": {"model": {"revision": "v2"}}}).status == 200


STATUS = {
    "observedGeneration": 1,
    "replicas": 2,
    "readyReplicas": 2,
    "desired": 2,
    "active": 2,
    "guards": 0,
    "waking": 0,
    "failed": 0,
    "selector": "rouse.dev/modelservice=demo",
    "consecutiveFailures": 0,
    "lastFailureTime": "2026-01-02T03:04:05Z",
    "lastPath": "Peer",
    "lastSeconds": "18.4",
    "conditions": [
        {
            "type": "Available",
            "status": "True",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-02T03:04:05Z",
            "reason": "InstancesServe",
            "message": "2 of 2 instances serve",
        }
    ],
    "scaleOuts": [
        {
            "pod": "demo-1",
            "uid": "5c7e1f1c-0000-4000-8000-000000000000",
            "path": "Peer",
            "reason": "Wake: no guard",
            "seconds": 18.375,
            "phases": [
                {"name": "Schedule", "seconds": 1.5},
                {"name": "Hydrate", "seconds": 16.875},
            ],
            "bytesBySource": {"peer": 348_000_000_000, "storage": 0},
            "finishedAt": "2026-01-02T03:04:05Z",
        }
    ],
}


def test_a_whole_status_is_kept_and_shown_in_the_columns(stored: Cluster):
    assert patch(stored, {"status": STATUS}, "status").status == 200
    assert stored.get("modelservice", "demo")["status"] == STATUS
    header, row = stored.kubectl("get", "rms").strip().splitlines()
    assert header.split() == ["NAME", "DESIRED", "READY", "LAST-PATH", "LAST-SECONDS", "AGE"]
    assert row.split()[:5] == ["demo", "1", "2", "Peer", "18.4"]


def test_the_short_name_and_the_category_work(stored: Cluster):
    assert "demo" in stored.kubectl("get", "rms")
    assert "demo" in stored.kubectl("get", "rouse")


def test_two_conditions_of_one_type_are_refused(stored: Cluster):
    twice = {"status": {"conditions": STATUS["conditions"] * 2}}
    answer = patch(stored, twice, "status")
    assert answer.status == 422
    assert "Duplicate value" in message_of(answer)


# ---- the schema as a whole


def test_the_schema_is_structural_and_every_spec_field_is_described(api_with_crd: Cluster):
    def ready() -> bool:
        found = api_with_crd.get("crd", "modelservices.rouse.dev")
        conditions = {x["type"]: x for x in found["status"]["conditions"]}
        assert "NonStructuralSchema" not in conditions, conditions["NonStructuralSchema"]["message"]
        return conditions.get("Established", {}).get("status") == "True"

    wait_until("the CRD to be established", 20, ready)

    def explain(field: str, schema: Object) -> list[str]:
        missing = [] if schema.get("description") else [field]
        for name, child in schema.get("properties", {}).items():
            missing += explain(f"{field}.{name}", child)
        items = schema.get("items", {})
        for name, child in items.get("properties", {}).items():
            missing += explain(f"{field}[].{name}", child)
        return missing

    crd = json.loads(api_with_crd.kubectl("get", "crd", "modelservices.rouse.dev", "-o", "json"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    missing = explain("spec", schema["properties"]["spec"])
    assert not [x for x in missing if not x.startswith("spec.template.metadata.")]


def test_kubectl_explain_shows_unit_and_default(api_with_crd: Cluster):
    text = api_with_crd.kubectl("explain", "modelservice.spec.fastStart.weights.fallback")
    assert "Default by" in text and "storage" in text
