"""The chart as a user meets it: rendered, refused, installed, asked for its rights, removed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster, KubectlError, Object
from rouse_e2e.processes import wait_until

from . import kubeconform
from .conftest import CHART, CRD, MODELSERVICES

NAMESPACE = "rouse-system"
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
        "resources": {"limits": {"memory": "64Gi", "rdma/hca": 1}},
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
    "fullnameOverride": "wake",
}


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    extra = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [paths.tool("helm"), *arguments, *extra],
        input=None if values is None else json.dumps(values),
        stdin=subprocess.DEVNULL if values is None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


def render(values: Object | None = None, release: str = "rouse") -> list[Object]:
    result = helm("template", release, str(CHART), "-n", NAMESPACE, "--include-crds", values=values)
    assert result.returncode == 0, result.stderr
    return [x for x in yaml.safe_load_all(result.stdout) if x]


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    found = [x for x in objects if x["kind"] == kind and name in ("", x["metadata"]["name"])]
    assert len(found) == 1, [x["metadata"]["name"] for x in found]
    return found[0]


# ---- without a cluster


def test_the_chart_holds_the_same_crd_as_the_repository():
    copy = CHART / "crds" / CRD.name
    assert copy.read_text() == CRD.read_text(), f"copy {CRD} to {copy}"


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_has_nothing_to_say(values: Object | None):
    result = helm("lint", "--strict", str(CHART), values=values)
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
    assert '--agent-resources={"limits":{"memory":"64Gi","rdma/hca":1}}' in container["args"]
    assert container["args"][-1] == "--some-flag=some value"
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
    assert kinds == {"CustomResourceDefinition", "Deployment", "Service"}


def test_long_release_names_still_make_valid_names():
    for thing in render(release="r" * 53):
        assert len(thing["metadata"]["name"]) <= 63


BAD_VALUES: dict[str, tuple[Object, str]] = {
    "a misspelt value": ({"operator": {"replicaCount": 2}}, "replicaCount"),
    "an unknown section": ({"webhook": {}}, "webhook"),
    "replicas as text": ({"operator": {"replicas": "two"}}, "/operator/replicas"),
    "fewer than no replicas": ({"operator": {"replicas": -1}}, "/operator/replicas"),
    "a node's folder that is no absolute path": (
        {"agent": {"nodeFolder": "run/rouse"}},
        "/agent/nodeFolder",
    ),
    "a folder for caches that is no absolute path": (
        {"agent": {"state": {"folder": "rouse"}}},
        "/agent/state/folder",
    ),
    "no room for caches": ({"agent": {"state": {"maxMib": 0}}}, "/agent/state/maxMib"),
    "a GPU's resource without a domain": (
        {"agent": {"gpus": {"resourceNames": ["gpu"]}}},
        "/agent/gpus/resourceNames/0",
    ),
    "a runtime class with capitals": (
        {"agent": {"gpus": {"runtimeClassName": "Nvidia"}}},
        "/agent/gpus/runtimeClassName",
    ),
    "an unknown log level": ({"operator": {"logLevel": "loud"}}, "/operator/logLevel"),
    "an unknown pull policy": (
        {"agent": {"image": {"pullPolicy": "Sometimes"}}},
        "/agent/image/pullPolicy",
    ),
    "a tag within the repository": (
        {"agent": {"image": {"repository": "rouse-agent:1"}}},
        "/agent/image/repository",
    ),
    "an empty repository": (
        {"operator": {"image": {"repository": ""}}},
        "/operator/image/repository",
    ),
    "a port out of range": ({"service": {"port": 70000}}, "/service/port"),
    "no port for agents": ({"service": {"agentsPort": 0}}, "/service/agentsPort"),
    "no port for KEDA": ({"service": {"scalerPort": 0}}, "/service/scalerPort"),
    "a label that is a number": ({"operator": {"podLabels": {"a": 1}}}, "/operator/podLabels/a"),
    "a pull secret that is no object": ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
    "an account name with capitals": (
        {"serviceAccount": {"name": "Rouse"}},
        "/serviceAccount/name",
    ),
    "arguments as one string": ({"operator": {"extraArgs": "--a --b"}}, "/operator/extraArgs"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_refused_by_name(case: str):
    values, name = BAD_VALUES[case]
    result = helm("template", "rouse", str(CHART), values=values)
    assert result.returncode != 0, "was rendered"
    assert "values don't meet the specifications of the schema" in result.stderr, result.stderr
    # helm writes /operator/replicas or operator.replicas, depending on its version
    assert name in result.stderr or name.strip("/").replace("/", ".") in result.stderr, (
        result.stderr
    )


# ---- the API server's opinion of what is rendered


@pytest.fixture(scope="module")
def schemas(api_with_crd: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")

    def published() -> bool:
        kubeconform.write_schemas(api_with_crd, folder)
        return (folder / "modelservice-rouse-v1alpha1.json").exists()

    wait_until("the API server to publish our schema", 30, published, 1)
    return folder


@pytest.mark.parametrize("values", [None, EVERYTHING], ids=["defaults", "everything"])
def test_kubeconform_accepts_everything_rendered(schemas: Path, values: Object | None):
    objects = [x for x in render(values) if x["kind"] != "CustomResourceDefinition"]
    assert kubeconform.check(schemas, yaml.safe_dump_all(objects)) == ""


def test_kubeconform_finds_a_typo(schemas: Path):
    deployment = one(render(), "Deployment")
    deployment["spec"]["replikas"] = 1
    assert "replikas" in kubeconform.check(schemas, json.dumps(deployment))


@pytest.mark.parametrize(
    "sample", sorted((paths.REPOSITORY / "config" / "samples").glob("*.yaml")), ids=lambda x: x.name
)
def test_the_samples_are_accepted(schemas: Path, api_with_crd: Cluster, sample: Path):
    assert kubeconform.check(schemas, sample.read_text()) == ""
    api_with_crd.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(sample))
    )


@pytest.fixture(scope="module")
def namespace(api_with_crd: Cluster) -> Cluster:
    """NAMESPACE, where only pods of the `restricted` Pod Security Standard are let in."""
    labels = {f"pod-security.kubernetes.io/{x}": "restricted" for x in ("enforce", "warn")}
    metadata = {"name": NAMESPACE, "labels": labels}
    api_with_crd.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    account = lambda: api_with_crd.get("serviceaccount", "default", NAMESPACE)  # noqa: E731
    wait_until("the namespace's service account", 30, account)
    return api_with_crd


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
    namespace.helm("install", "rouse", str(CHART), "-n", NAMESPACE)
    yield namespace
    namespace.helm("uninstall", "rouse", "-n", NAMESPACE, "--ignore-not-found")


def test_helm_install_brings_the_crd(installed: Cluster):
    installed.kubectl(
        "wait", "--for=condition=Established", "crd/modelservices.rouse.dev", "--timeout=30s"
    )
    samples = (paths.REPOSITORY / "config" / "samples" / "demo.yaml").read_text()
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
    installed.helm("upgrade", "rouse", str(CHART), "-n", NAMESPACE, "--set", "operator.replicas=2")
    assert installed.get("deployment", "rouse-operator", NAMESPACE)["spec"]["replicas"] == 2
    installed.helm("uninstall", "rouse", "-n", NAMESPACE)
    assert installed.get("crd", "modelservices.rouse.dev") is not None
    for kind in ("deployment", "service", "serviceaccount", "role", "rolebinding"):
        assert installed.list(kind, NAMESPACE, "app.kubernetes.io/part-of=rouse") == []
    for kind in ("clusterrole", "clusterrolebinding"):
        assert installed.list(kind, "*", "app.kubernetes.io/part-of=rouse") == []
