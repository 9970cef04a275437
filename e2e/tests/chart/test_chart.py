"""The chart as a user meets it: rendered, refused, installed, asked for its rights, removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster, KubectlError, Object
from rouse_e2e.processes import wait_until

from . import kubeconform
from .conftest import CRD, MODELSERVICES
from .rendering import MONITORING, NAMESPACE, helm, one, render

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:rouse-operator"

EVERYTHING = {
    "operator": {
        "image": {
            "repository": "registry.example.com:5000/rouse/operator",
            "tag": "1.2",
            "pullPolicy": "Always",
        },
        "replicas": 2,
        "logLevel": "debug",
        "watchNamespace": "default",
        "extraArgs": ["--some-flag=some value"],
        "resources": {"limits": {"memory": "1Gi", "cpu": 2}},
        "podLabels": {"team": "a"},
        "podAnnotations": {"prometheus.io/scrape": "true"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podDisruptionBudget": {"enabled": True, "maxUnavailable": "50%"},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "agent": {
        "image": {
            "repository": "registry.example.com/rouse/agent",
            "tag": "1.3",
            "pullPolicy": "Never",
        },
        "imagePullSecrets": [{"name": "agents"}],
        "logLevel": "warn",
        "nodeFolder": "/run/rouse",
        "state": {"folder": "/var/lib/rouse", "maxMib": 2000000},
        "gpus": {
            "resourceNames": ["nvidia.com/gpu", "example.com/gpu"],
            "runtimeClassName": "nvidia",
        },
        "rdma": {"resourceName": "rdma/hca", "count": 2},
        "resources": {"limits": {"memory": "64Gi"}},
    },
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccount": {"create": True, "name": "someone", "annotations": {"a": "b"}},
    "rbac": {"create": True, "aggregate": True},
    "service": {
        "port": 80,
        "agentsPort": 82,
        "scalerPort": 81,
        "annotations": {"prometheus.io/scrape": "true"},
    },
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}],
        "scalerFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    },
    "monitoring": {
        "monitors": "Always",
        "rules": "Always",
        "labels": {"release": "prometheus"},
        "interval": "15s",
    },
    "grafana": {
        "dashboard": {
            "enabled": True,
            "labels": {"grafana_dashboard": "1"},
            "annotations": {"grafana_folder": "Rouse"},
        }
    },
    "fullnameOverride": "wake",
}


# ---- without a cluster


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        (CRD, f"crds/{CRD.name}"),
        (CRD, f"../../config/crd/{CRD.name}"),
        (paths.REPOSITORY / "config/alerts/rouse.yaml", "files/alerts.yaml"),
        (paths.REPOSITORY / "config/dashboards/scale-latency.json", "files/scale-latency.json"),
    ],
    ids=["crd", "kustomize", "alerts", "dashboard"],
)
def test_the_chart_holds_the_same_as_the_repository(original: Path, copy: str):
    assert (paths.CHART / copy).read_text() == original.read_text(), (
        f"copy {original} to {paths.CHART / copy}"
    )


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_has_nothing_to_say(values: Object | None):
    result = helm("lint", "--strict", str(paths.CHART), values=values)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout and "ERROR" not in result.stdout, result.stdout


def test_every_value_arrives_where_it_belongs():
    objects = render(EVERYTHING)
    deployment = one(objects, "Deployment")
    assert deployment["metadata"]["name"] == "wake-operator"
    assert deployment["spec"]["replicas"] == 2
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}
    pod = template["spec"]
    assert pod["serviceAccountName"] == "someone"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["tolerations"] == [{"key": "x", "operator": "Exists"}]
    assert pod["affinity"] == {"nodeAffinity": {}}
    assert pod["priorityClassName"] == "system-cluster-critical"
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com:5000/rouse/operator:1.2"
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"]["limits"] == {"memory": "1Gi", "cpu": 2}
    assert "--agent-image=registry.example.com/rouse/agent:1.3" in container["args"]
    assert "--agent-pull-policy=Never" in container["args"]
    assert "--service-name=wake-operator" in container["args"]
    assert "--authorities-secret=wake-authorities" in container["args"]
    assert "--log-level=debug" in container["args"]
    assert "--namespace=default" in container["args"]
    assert "--image-pull-secret=agents" in container["args"]
    assert "--agent-log-level=warn" in container["args"]
    assert "--agent-node-folder=/run/rouse" in container["args"]
    assert "--agent-state-folder=/var/lib/rouse" in container["args"]
    assert "--agent-state-mib=2000000" in container["args"]
    assert "--gpu-resource=nvidia.com/gpu" in container["args"]
    assert "--gpu-resource=example.com/gpu" in container["args"]
    assert "--gpu-runtime-class=nvidia" in container["args"]
    assert '--agent-resources={"limits":{"memory":"64Gi","rdma/hca":2}}' in container["args"]
    assert container["args"][-1] == "--some-flag=some value"
    assert pod["topologySpreadConstraints"] == [
        {
            **EVERYTHING["operator"]["topologySpreadConstraints"][0],
            "labelSelector": deployment["spec"]["selector"],
        }
    ]
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == "50%"
    assert budget["selector"] == deployment["spec"]["selector"]
    policy = one(objects, "NetworkPolicy")["spec"]
    assert policy["podSelector"] == deployment["spec"]["selector"]
    agents, metrics, scaler = policy["ingress"]
    assert agents["from"][0]["namespaceSelector"] == {
        "matchLabels": {"kubernetes.io/metadata.name": "default"}
    }
    assert metrics["from"][1:] == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert scaler["from"] == EVERYTHING["networkPolicy"]["scalerFrom"]
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert one(objects, kind)["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = one(objects, "ServiceMonitor")["spec"]["endpoints"]
    (agent,) = one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["interval"] == agent["interval"] == "15s"
    assert one(objects, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["default"]}
    dashboard = one(objects, "ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["metadata"]["annotations"] == {"grafana_folder": "Rouse"}
    service = one(objects, "Service")
    ports = {x["name"]: x["port"] for x in service["spec"]["ports"]}
    assert ports == {"http": 80, "agents": 82, "scaler": 81}
    named = {x["name"]: x["containerPort"] for x in container["ports"]}
    assert {x["targetPort"] for x in service["spec"]["ports"]} == named.keys()
    assert service["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}
    account = one(objects, "ServiceAccount")
    assert account["metadata"]["name"] == "someone" and account["metadata"]["annotations"] == {
        "a": "b"
    }
    bindings = [x for x in objects if x["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert [x["subjects"][0]["name"] for x in bindings] == ["someone"] * 3


def test_agents_see_gpus_by_default_and_it_can_be_switched_off():
    def arguments(values: Object | None) -> list[str]:
        (container,) = one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        return [x for x in container["args"] if x.startswith("--gpu-")]

    assert arguments(None) == ["--gpu-resource=nvidia.com/gpu"]
    assert arguments({"agent": {"gpus": {"resourceNames": []}}}) == []


def test_for_one_namespace_there_is_no_right_in_others():
    objects = render({"operator": {"watchNamespace": "models"}, "rbac": {"aggregate": False}})
    # Token reviews are of no namespace.
    (cluster_wide,) = [x for x in objects if x["kind"] == "ClusterRole"]
    review = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]}
    assert cluster_wide["rules"] == [{**review, "verbs": ["create"]}]
    places = {x["metadata"]["namespace"] for x in objects if x["kind"] == "RoleBinding"}
    assert places == {"models", NAMESPACE}
    role = one(objects, "Role", "rouse-operator-instances")
    assert role["metadata"]["namespace"] == "models"
    everywhere = one(render(), "ClusterRole", "rouse-operator")
    # Nodes are of no namespace either: who serves one namespace does without.
    assert role["rules"] == [x for x in everywhere["rules"] if x["resources"] != ["nodes"]]


def test_the_service_selects_the_operators_pods_and_no_selector_holds_a_version():
    objects = render()
    selector = one(objects, "Service")["spec"]["selector"]
    deployment = one(objects, "Deployment")
    assert deployment["spec"]["selector"]["matchLabels"] == selector
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not any("version" in key or "chart" in key for key in selector)


def test_what_is_switched_off_is_not_rendered():
    off = {
        "serviceAccount": {"create": False, "name": "mine"},
        "rbac": {"create": False, "aggregate": False},
    }
    kinds = {x["kind"] for x in render(off)}
    assert kinds == {"CustomResourceDefinition", "Deployment", "Service", "Pod"}  # helm test's pod


def test_one_replica_has_no_disruption_budget_which_would_keep_its_node_from_being_drained():
    def budgets(operator: Object) -> list[Object]:
        objects = render({"operator": operator})
        return [x for x in objects if x["kind"] == "PodDisruptionBudget"]

    assert budgets({}) == []
    assert len(budgets({"replicas": 2})) == 1
    assert budgets({"replicas": 2, "podDisruptionBudget": {"enabled": False}}) == []


@pytest.mark.parametrize(
    ("value", "known", "rendered"),
    [
        ("Auto", (), False),
        ("Auto", MONITORING, True),
        ("Always", (), True),
        ("Never", MONITORING, False),
    ],
)
def test_the_prometheus_operators_kinds_are_rendered_where_the_cluster_knows_them(
    value: str, known: tuple[str, ...], rendered: bool
):
    values = {"monitoring": {"monitors": value, "rules": value}}
    kinds = {x["kind"] for x in render(values, capabilities=known)}
    found = kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert len(found) == (3 if rendered else 0)


def test_a_device_that_is_named_twice_is_refused():
    twice = {"agent": {"rdma": {"resourceName": "rdma/hca"}}}
    twice["agent"]["resources"] = {"limits": {"rdma/hca": 1}}
    result = helm("template", "rouse", str(paths.CHART), values=twice)
    assert result.returncode != 0
    assert "agent.rdma.resourceName and agent.resources.limits both name rdma/hca" in result.stderr


def test_the_network_policy_opens_the_ports_that_the_pods_have():
    objects = render({"networkPolicy": {"enabled": True}})
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    opened = [
        y["port"] for x in one(objects, "NetworkPolicy")["spec"]["ingress"] for y in x["ports"]
    ]
    assert sorted(opened) == sorted(x["name"] for x in container["ports"])


def test_long_release_names_still_make_valid_names():
    for thing in render(release="r" * 53):
        assert len(thing["metadata"]["name"]) <= 63


# ---- the API server's opinion of what is rendered


@pytest.fixture(scope="module")
def schemas(api_with_foreign_kinds: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")

    def published() -> bool:
        kubeconform.write_schemas(api_with_foreign_kinds, folder)
        return kubeconform.WANTED_FILES <= {x.name for x in folder.iterdir()}

    wait_until("the API server to publish all schemas", 30, published, 1)
    return folder


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_kubeconform_accepts_everything_rendered(schemas: Path, values: Object | None):
    objects = [x for x in render(values) if x["kind"] != "CustomResourceDefinition"]
    assert kubeconform.check(schemas, yaml.safe_dump_all(objects)) == ""


def test_kubeconform_finds_a_typo(schemas: Path):
    deployment = one(render(), "Deployment")
    deployment["spec"]["replikas"] = 1
    assert "replikas" in kubeconform.check(schemas, json.dumps(deployment))


SAMPLES = sorted(paths.SAMPLES.glob("*.yaml"))


@pytest.fixture(scope="module")
def samples_namespace(api_with_foreign_kinds: Cluster) -> Iterator[str]:
    api_with_foreign_kinds.kubectl("create", "namespace", "samples")
    yield "samples"
    api_with_foreign_kinds.kubectl("delete", "namespace", "samples", "--wait=false")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda x: x.name)
def test_the_samples_can_be_applied(
    schemas: Path, api_with_foreign_kinds: Cluster, samples_namespace: str, sample: Path
):
    """Really, the kinds of others included, of whose API servers only the CRDs are here."""
    assert kubeconform.check(schemas, sample.read_text()) == ""
    api_with_foreign_kinds.kubectl(
        *("apply", "--server-side", "--validate=strict", "-n", samples_namespace),
        *("-f", str(sample)),
    )


def test_there_is_a_sample_of_each_profile():
    documents = [x for file in SAMPLES for x in yaml.safe_load_all(file.read_text())]
    services = [x["spec"] for x in documents if x["kind"] == "ModelService"]
    found = {x["fastStart"]["profile"] for x in services}
    assert found == {"Guarded", "LazyCapture", "Shared"}


def test_what_scales_a_modelservice_and_what_sends_it_requests_name_the_sample():
    documents = [x for file in SAMPLES for x in yaml.safe_load_all(file.read_text())]
    named = {
        x["spec"]["scaleTargetRef"]["name"] for x in documents if "scaleTargetRef" in x["spec"]
    }
    (pool,) = [x for x in documents if x["kind"] == "InferencePool"]
    named.add(pool["spec"]["selector"]["matchLabels"]["rouse.dev/modelservice"])
    assert named == {"qwen3"}
    assert "qwen3" in [x["metadata"]["name"] for x in documents if x["kind"] == "ModelService"]


@pytest.fixture(scope="module")
def namespace(api_with_foreign_kinds: Cluster) -> Cluster:
    """NAMESPACE, where only pods of the `restricted` Pod Security Standard are let in."""
    labels = {f"pod-security.kubernetes.io/{x}": "restricted" for x in ("enforce", "warn")}
    metadata = {"name": NAMESPACE, "labels": labels}
    api_with_foreign_kinds.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    account = lambda: api_with_foreign_kinds.get("serviceaccount", "default", NAMESPACE)  # noqa: E731
    wait_until("the namespace's service account", 30, account)
    return api_with_foreign_kinds


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_the_api_server_accepts_everything_rendered(namespace: Cluster, values: Object | None):
    for thing in render(values):
        if thing["kind"] == "CustomResourceDefinition":
            continue  # there already; installing it is a test of its own
        namespace.kubectl(
            *("create", "--dry-run=server", "--validate=strict", "-f", "-"), stdin=json.dumps(thing)
        )


def test_the_operators_pod_meets_the_restricted_pod_security_standard(namespace: Cluster):
    template = one(render(), "Deployment")["spec"]["template"]
    template["spec"]["serviceAccountName"] = "default"  # the chart's is not there in a dry run
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] |= {"name": "operator", "namespace": NAMESPACE}
    namespace.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    del pod["spec"]["securityContext"]["runAsNonRoot"]  # the check above can fail
    with pytest.raises(RuntimeError, match="runAsNonRoot"):
        namespace.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


# ---- installed


@pytest.fixture(scope="module")
def installed(namespace: Cluster):
    """`helm install` into a cluster that does not know ModelServices yet."""
    namespace.kubectl("delete", "crd", "modelservices.rouse.dev", "--ignore-not-found")
    namespace.helm("install", "rouse", str(paths.CHART), "-n", NAMESPACE)
    yield namespace
    namespace.helm("uninstall", "rouse", "-n", NAMESPACE, "--ignore-not-found")


def test_helm_install_brings_the_crd(installed: Cluster):
    installed.kubectl(
        "wait", "--for=condition=Established", "crd/modelservices.rouse.dev", "--timeout=30s"
    )
    samples = (paths.SAMPLES / "demo.yaml").read_text()
    document = next(yaml.safe_load_all(samples))
    where = MODELSERVICES.replace("/default/", f"/{NAMESPACE}/")
    wait_until(
        "a ModelService to be taken",
        30,
        lambda: installed.request("POST", where, document).status == 201,
    )

    def listed() -> str:
        try:
            return installed.kubectl("get", "rms", "-n", NAMESPACE, "-o", "name")
        except KubectlError:  # short names become known a little later
            return ""

    assert wait_until("kubectl get rms", 30, listed).split() == ["modelservice.rouse.dev/demo"]
    installed.kubectl("delete", "rms", "demo", "-n", NAMESPACE)


def test_the_installed_deployment_gets_its_pod_in_a_restricted_namespace(installed: Cluster):
    (pod,) = wait_until("the pod", 30, lambda: installed.list("pods", NAMESPACE))
    assert pod["spec"]["serviceAccountName"] == "rouse-operator"
    assert pod["spec"]["containers"][0]["image"] == "rouse-operator:0.1.0"


CAN = [
    *((verb, "nodes", "default") for verb in ("list", "watch")),
    *((verb, "modelservices.rouse.dev", "default") for verb in ("list", "watch")),
    ("patch", "modelservices.rouse.dev/status", "default"),
    ("update", "modelservices.rouse.dev/finalizers", "default"),
    *((verb, "pods", "default") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *((verb, "events.events.k8s.io", "default") for verb in ("create", "patch")),
    *((verb, "leases.coordination.k8s.io", NAMESPACE) for verb in ("get", "create", "update")),
    ("get", "services", NAMESPACE),
    ("patch", "pods/status", "default"),
    *((verb, "services", "default") for verb in ("get", "list", "watch", "create", "patch")),
]
CANNOT = [
    *(
        (verb, "modelservices.rouse.dev", "default")
        for verb in ("create", "update", "patch", "delete")
    ),
    ("update", "modelservices.rouse.dev/scale", "default"),
    ("deletecollection", "pods", "default"),
    ("update", "pods", "default"),
    ("create", "pods/exec", "default"),
    ("create", "pods/eviction", "default"),
    ("get", "pods/log", "default"),
    # To create one cannot be bound to a name.
    *((verb, "secrets", NAMESPACE) for verb in ("get", "list", "watch")),
    ("create", "secrets", "default"),
    *((verb, "secrets", "default") for verb in ("get", "list")),
    *((verb, "configmaps", "default") for verb in ("get", "list", "create")),
    *((verb, "nodes", "default") for verb in ("get", "patch")),
    ("list", "namespaces", "default"),
    ("create", "deployments.apps", "default"),
    ("create", "serviceaccounts/token", NAMESPACE),
    *((verb, "services", "default") for verb in ("update", "delete")),
    ("get", "leases.coordination.k8s.io", "default"),
    ("delete", "leases.coordination.k8s.io", NAMESPACE),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io", "default"),
    ("escalate", "clusterroles.rbac.authorization.k8s.io", "default"),
    ("impersonate", "users", "default"),
]


def can_i(cluster: Cluster, user: str, verb: str, what: str, namespace: str, *groups: str) -> bool:
    resource, _, sub = what.partition("/")
    resource, _, group = resource.partition(".")
    attributes = {"namespace": namespace, "verb": verb, "group": group}
    attributes |= {"resource": resource, "subresource": sub}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
    }
    answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert answer.status == 201, answer.text
    return answer.json()["status"]["allowed"]


def test_the_operators_account_may_do_what_it_does(installed: Cluster):
    refused = [x for x in CAN if not can_i(installed, ACCOUNT, *x)]
    assert refused == []


def test_the_operators_account_may_do_nothing_else(installed: Cluster):
    allowed = [x for x in CANNOT if can_i(installed, ACCOUNT, *x)]
    assert allowed == []


def test_no_rule_of_the_operator_has_a_wildcard():
    for thing in render():
        for rule in thing.get("rules", []):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], thing[
                "metadata"
            ]["name"]


@pytest.mark.parametrize(
    ("role", "verb", "what", "allowed"),
    [
        ("edit", "create", "modelservices.rouse.dev", True),
        ("edit", "patch", "modelservices.rouse.dev/scale", True),
        ("edit", "get", "modelservices.rouse.dev", True),
        ("edit", "patch", "modelservices.rouse.dev/status", False),
        ("view", "list", "modelservices.rouse.dev", True),
        ("view", "patch", "modelservices.rouse.dev/scale", False),
        ("view", "create", "modelservices.rouse.dev", False),
    ],
)
def test_who_may_edit_or_view_a_namespace_may_so_with_modelservices(
    installed: Cluster, role: str, verb: str, what: str, allowed: bool
):
    installed.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{role}er", "namespace": "default"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role,
            },
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{role}er"}
            ],
        }
    )

    def settled() -> bool:  # roles are aggregated by a controller, a moment later
        return can_i(installed, f"{role}er", "list", "modelservices.rouse.dev", "default")

    wait_until("the role to be aggregated", 30, settled)
    assert can_i(installed, f"{role}er", verb, what, "default") == allowed
    assert not can_i(installed, f"{role}er", verb, what, "kube-system")


def test_upgrade_and_uninstall_leave_the_crd_and_nothing_else(installed: Cluster):
    installed.helm(
        "upgrade", "rouse", str(paths.CHART), "-n", NAMESPACE, "--set", "operator.replicas=2"
    )
    assert installed.get("deployment", "rouse-operator", NAMESPACE)["spec"]["replicas"] == 2
    # With two replicas, and in a cluster that knows the Prometheus operator's kinds.
    more = ("poddisruptionbudget", "servicemonitor", "podmonitor", "prometheusrule")
    for kind in more:
        assert len(installed.list(kind, NAMESPACE, "app.kubernetes.io/part-of=rouse")) == 1, kind
    installed.helm("uninstall", "rouse", "-n", NAMESPACE)
    assert installed.get("crd", "modelservices.rouse.dev") is not None
    for kind in ("deployment", "service", "serviceaccount", "role", "rolebinding", *more):
        assert installed.list(kind, NAMESPACE, "app.kubernetes.io/part-of=rouse") == []
    for kind in ("clusterrole", "clusterrolebinding"):
        assert installed.list(kind, "*", "app.kubernetes.io/part-of=rouse") == []
