"""Who is believed, and who is not: the real operator, real agents, a real API server's tokens."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rouse_e2e import certificates, paths
from rouse_e2e.certificates import Certificates
from rouse_e2e.cluster import Object
from rouse_e2e.processes import tail, wait_until

from .conftest import SYSTEM, Operator, World, start_world
from .fake_agent_reports import report
from .modelservice import condition, modelservice, pods, scale, wait_pods

SECRET = "rouse-authorities"


@pytest.fixture(scope="module")
def world(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Its own: its pods have addresses on loopback, where real agents listen."""
    with start_world(build_folder, tmp_path_factory, pods="127.66.0.0/16") as started:
        yield started


@pytest.fixture
def signed(world: World) -> Certificates:
    of_world = certificates.of(world.cluster)
    of_world.forget()
    return of_world


def some_pods(world: World, namespace: str, count: int = 1) -> dict[str, Object]:
    world.cluster.apply(modelservice(namespace, count))
    return wait_pods(world.cluster, namespace, count)


def tell(operator: Operator, tls: ssl.SSLContext, body: Any) -> tuple[int, str]:
    status, answer = certificates.post(operator.tls_port, "/v1/agents/report", body, tls)
    return status, json.dumps(answer)


def refusal(answer: Any) -> str:
    return answer["error"]["message"]


# ---- who gets a certificate


def test_a_pod_gets_a_certificate_for_itself_whatever_it_asks_for(
    world: World, namespace: str, operator: Operator, signed: Certificates, tmp_path: Path
):
    pod = some_pods(world, namespace)["m-0"]
    request = tmp_path / "csr.pem"
    subprocess.run(
        ["openssl", "req", "-new", "-key", str(signed.key), "-subj", "/CN=rouse-operator"]
        + ["-addext", f"subjectAltName=URI:{certificates.OPERATOR},IP:127.0.0.1"]
        + ["-addext", "basicConstraints=critical,CA:TRUE", "-out", str(request)],
        check=True,
        capture_output=True,
    )
    token = signed.token(pod)
    status, answer = signed.ask(operator.tls_port, namespace, token, request.read_text())
    assert status == 200, answer
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"],
        input=answer["certificate"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    meta = pod["metadata"]
    uri = f"spiffe://rouse.dev/ns/{namespace}/pod/m-0/uid/{meta['uid']}"
    assert f"URI:{uri}, IP Address:{pod['status']['podIP']}" in text
    assert "CA:FALSE" in text and certificates.OPERATOR not in text
    assert operator.metric("rouse_certificates_total", outcome="signed") >= 1
    ends = operator.metric("rouse_certificate_end_timestamp_seconds", certificate="own")
    assert 3000 < ends - time.time() <= 3600


def test_a_token_that_does_not_prove_a_pod_of_ours_gets_no_certificate(
    world: World, namespace: str, operator: Operator, signed: Certificates
):
    cluster = world.cluster
    ours = some_pods(world, namespace)["m-0"]
    cluster.kubectl("run", "stranger", "-n", namespace, "--image=x", "--restart=Never")
    stranger = cluster.get("pod", "stranger", namespace)
    # It says that it is of the ModelService, and is not.
    cluster.kubectl("label", "pod", "stranger", "-n", namespace, "rouse.dev/modelservice=m")
    account = cluster.kubectl("create", "token", "default", "-n", namespace, "--audience=rouse")
    good = signed.token(ours)
    cases = {
        "another audience": (signed.token(ours, audience="https://kubernetes.default.svc"), 403),
        "no pod": (account.strip(), 403),
        "a pod of nobody's": (signed.token(stranger), (403, 503)),
        "expired": (expired(world, good), 403),
        "damaged": (good[:-8] + "AAAAAAAA", 403),
        "no token": ("x", 403),
        "an empty token": ("", 400),
    }
    wrong = {}
    for case, (token, wanted) in cases.items():
        status, answer = signed.ask(operator.tls_port, namespace, token)
        if status not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            wrong[case] = (status, answer)
        print(f"{case}: {refusal(answer)}")
    assert wrong == {}
    assert signed.ask(operator.tls_port, namespace, good)[0] == 200


def expired(world: World, token: str) -> str:
    """The same token as of an hour ago, signed with the API server's own key."""

    def encode(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head, body, _ = token.split(".")
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    for when in ("exp", "iat", "nbf"):
        claims[when] -= 3600
    text = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
    key = world.cluster.control_plane.pki / "sa.key"
    der = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key)],
        input=text.encode(),
        check=True,
        capture_output=True,
    ).stdout
    # SEQUENCE {INTEGER r, INTEGER s} to r and s of 32 bytes each.
    r_end = 4 + der[3]
    r, s = der[4:r_end], der[r_end + 2 :]
    numbers = [x.lstrip(b"\0").rjust(32, b"\0") for x in (r, s)]
    return f"{text}.{encode(b''.join(numbers))}"


def test_one_pod_that_asks_again_and_again_is_refused_after_a_while(
    world: World, namespace: str, operator: Operator, signed: Certificates
):
    found = some_pods(world, namespace, 2)
    token = signed.token(found["m-0"])
    statuses = [signed.ask(operator.tls_port, namespace, token)[0] for _ in range(15)]
    assert statuses[:10] == [200] * 10 and 507 in statuses
    assert signed.ask(operator.tls_port, namespace, signed.token(found["m-1"]))[0] == 200


# ---- who is answered


def test_a_report_is_taken_from_the_pods_own_agent_and_from_nobody_else(
    world: World, namespace: str, operator: Operator, signed: Certificates, tmp_path: Path
):
    found = some_pods(world, namespace, 2)
    port, trusted = operator.tls_port, signed.trusted(namespace)
    mine = signed.context_of(found["m-0"], port)
    assert tell(operator, mine, report(found["m-0"]))[0] == 200
    status, answer = tell(operator, mine, report(found["m-1"]))
    assert status == 403 and "m-1" in answer and "m-0" in answer
    nobody = certificates.context(ssl.PROTOCOL_TLS_CLIENT, trusted)
    assert tell(operator, nobody, report(found["m-0"]))[0] == 403
    loads = {"protocol": "rouse-loads", "version": 1, "loads": []}
    status, _ = certificates.post(port, "/v1/operators/loads", loads, mine)
    assert status == 403

    # A certificate that says all the right things, by somebody else.
    forged = tmp_path / "forged.pem"
    uri = f"spiffe://rouse.dev/ns/{namespace}/pod/m-1/uid/{found['m-1']['metadata']['uid']}"
    subprocess.run(
        ["openssl", "req", "-x509", "-key", str(signed.key), "-subj", "/CN=rouse-agent"]
        + ["-addext", f"subjectAltName=URI:{uri}", "-days", "1", "-out", str(forged)],
        check=True,
        capture_output=True,
    )
    liar = certificates.context(ssl.PROTOCOL_TLS_CLIENT, trusted)
    liar.load_cert_chain(forged, signed.key)
    with pytest.raises(OSError):
        tell(operator, liar, report(found["m-1"]))
    notes = world.cluster.get("pod", "m-1", namespace)["metadata"]["annotations"]
    assert "rouse.dev/agent-state" not in notes


def test_plain_http_and_old_tls_get_nothing_from_the_port_of_agents(
    world: World, namespace: str, operator: Operator, signed: Certificates
):
    pod = some_pods(world, namespace)["m-0"]
    plain = http.client.HTTPConnection("127.0.0.1", operator.tls_port, timeout=5)
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.request("POST", "/v1/agents/report", json.dumps(report(pod)))
        plain.getresponse()
    old = signed.context_of(pod, operator.tls_port)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):
        tell(operator, old, report(pod))
    assert operator.get("/v1/agents/report")[0] == 404
    assert operator.exits == []


def test_a_certificate_is_worth_nothing_to_the_operator_once_its_pod_is_gone(
    world: World, namespace: str, operator: Operator, signed: Certificates
):
    cluster = world.cluster
    pod = some_pods(world, namespace)["m-0"]
    tls, token = signed.context_of(pod, operator.tls_port), signed.token(pod)
    scale(cluster, namespace, 0)
    wait_until("the pod to go", 40, lambda: not cluster.list("pods", namespace))

    def forgotten() -> bool:
        return tell(operator, tls, report(pod))[0] == 404

    wait_until("the operator to know", 10, forgotten)
    # The API server takes the token for void, though it would be good for minutes.
    wait_until(
        "the token to be void",
        20,
        lambda: signed.ask(operator.tls_port, namespace, token)[0] == 403,
    )
    scale(cluster, namespace, 1)
    later = wait_pods(cluster, namespace, {"m-0"})["m-0"]
    assert later["metadata"]["uid"] != pod["metadata"]["uid"]
    status, answer = tell(operator, tls, report(later))
    assert status == 403 and later["metadata"]["uid"] in answer


# ---- authorities


def test_certificates_outlive_the_operator_that_signed_them(
    world: World, namespace: str, make_operator, signed: Certificates
):
    first = make_operator("first").start()
    pod = some_pods(world, namespace)["m-0"]
    tls, trusted = signed.context_of(pod, first.tls_port), signed.trusted(namespace)
    second = make_operator("second").start()
    # The one that does not lead answers and signs alike.
    assert tell(second, tls, report(pod))[0] == 200
    assert signed.ask(second.tls_port, namespace, signed.token(pod))[0] == 200
    first.kill()
    world.forget_lease()
    second.wait_idle()
    assert tell(second, tls, report(pod))[0] == 200
    assert signed.trusted(namespace) == trusted


def test_a_secret_that_is_deleted_makes_all_that_was_signed_worthless(
    world: World, namespace: str, operator: Operator, signed: Certificates
):
    cluster = world.cluster
    pod = some_pods(world, namespace)["m-0"]
    tls, trusted = signed.context_of(pod, operator.tls_port), signed.trusted(namespace)
    assert tell(operator, tls, report(pod))[0] == 200
    cluster.kubectl("delete", "secret", SECRET, "-n", SYSTEM)
    wait_until("another bundle", 30, lambda: signed.trusted(namespace) != trusted)
    assert signed.trusted(namespace).count("BEGIN CERTIFICATE") == 1

    def refused() -> bool:
        try:
            tell(operator, tls, report(pod))
        except OSError:
            return True
        return False

    wait_until("what was signed before to be refused", 10, refused)
    signed.forget()
    assert tell(operator, signed.context_of(pod, operator.tls_port), report(pod))[0] == 200


class Agent:
    """A real rouse-agent for a pod that kwok plays; its volume is filled as the kubelet would."""

    def __init__(self, world: World, operator: Operator, pod: Object, folder: Path) -> None:
        self.world, self.pod = world, pod
        self.name = pod["metadata"]["name"]
        self.address = pod["status"]["podIP"]
        self.folder = folder / self.name
        (self.folder / "model").mkdir(parents=True)
        (self.folder / "model" / "config.json").write_text("{}")
        self.log = folder / f"{self.name}.log"
        self.signed = certificates.of(world.cluster)
        self.refresh()
        meta = pod["metadata"]
        environment = {
            "ROUSE_OPERATOR_URL": f"https://127.0.0.1:{operator.tls_port}",
            "ROUSE_CA_FILE": f"{self.folder}/ca.crt",
            "ROUSE_TOKEN_FILE": f"{self.folder}/token",
            "ROUSE_NAMESPACE": meta["namespace"],
            "ROUSE_POD": self.name,
            "ROUSE_POD_UID": meta["uid"],
            "ROUSE_POD_IP": self.address,
            "ROUSE_LISTEN_HOST": self.address,
            "ROUSE_MODEL_DIR": f"{self.folder}/model",
            "ROUSE_ENGINE_SOCKET": f"{self.folder}/engine.sock",
            "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": "lo",
        }
        program = world.program.parents[1] / "agent" / "rouse-agent"
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", str(program)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(os.environ, **environment),
            )

    def refresh(self) -> None:
        """What the kubelet does once a minute."""
        for name, text in (
            ("ca.crt", self.signed.trusted(self.pod["metadata"]["namespace"])),
            ("token", self.signed.token(self.pod)),
        ):
            new = self.folder / f"{name}.new"
            new.write_text(text)
            new.rename(self.folder / name)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()

    def ask(
        self, tls: ssl.SSLContext, path: str = "/v1/files", body: Any = None
    ) -> tuple[int, str]:
        """Status and answer, and it is really this pod's agent that answers."""
        connection = http.client.HTTPSConnection(self.address, 7411, timeout=5, context=tls)
        try:
            connection.connect()
            uri = certificates.uri_of(connection.sock)
            assert uri.endswith(f"/pod/{self.name}/uid/{self.pod['metadata']['uid']}"), uri
            text = None if body is None else json.dumps(body)
            connection.request("GET" if text is None else "POST", path, text)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def issuer(self) -> str:
        """Who has signed what it shows."""
        with socket.create_connection((self.address, 7411), timeout=5) as plain:
            tls = ssl.create_default_context()
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            with tls.wrap_socket(plain) as connection:
                der = connection.getpeercert(binary_form=True)
        return subprocess.run(
            ["openssl", "x509", "-inform", "DER", "-noout", "-issuer"],
            input=der,
            check=True,
            capture_output=True,
        ).stdout.decode()

    def serves(self, tls: ssl.SSLContext) -> bool:
        with contextlib.suppress(OSError):
            return self.ask(tls)[0] == 200
        return False


Run = Callable[[Operator, Object], Agent]


@pytest.fixture
def run_agent(world: World, tmp_path: Path) -> Iterator[Run]:
    made: list[Agent] = []

    def run(operator: Operator, pod: Object) -> Agent:
        made.append(Agent(world, operator, pod, tmp_path))
        return made[-1]

    yield run
    for agent in made:
        agent.close()


def test_an_agent_answers_its_peers_and_the_operator_and_nobody_else(
    world: World, namespace: str, operator: Operator, signed: Certificates, run_agent: Run
):
    found = some_pods(world, namespace, 2)
    agent = run_agent(operator, found["m-0"])
    port = operator.tls_port
    peer = signed.context_of(found["m-1"], port)
    wait_until(f"its certificate; its log:\n{tail(agent.log)}", 20, lambda: agent.serves(peer))
    kept = wait_until(
        "its report",
        20,
        lambda: pods(world.cluster, namespace)["m-0"]["metadata"]["annotations"].get(
            "rouse.dev/agent-address"
        ),
    )
    assert kept == f"https://{agent.address}:7411"

    role = {"protocol": "rouse-role", "version": 1, "role": "Guard"}
    status, answer = agent.ask(peer, "/v1/role", role)
    assert status == 403 and "only the operator" in answer
    opened = {"protocol": "rouse-weights", "version": 1, "launchIdentity": "x", "partial": True}
    status, answer = agent.ask(
        peer, "/v1/weights/open", {**opened, "requester": f"{namespace}/m-0"}
    )
    assert status == 403 and "requester" in answer
    status, answer = agent.ask(
        peer, "/v1/weights/open", {**opened, "requester": f"{namespace}/m-1"}
    )
    assert status == 412, answer

    elsewhere = world.namespace()
    world.cluster.apply(modelservice(elsewhere, 1))
    other = wait_pods(world.cluster, elsewhere, 1)["m-0"]
    status, answer = agent.ask(signed.context_of(other, port))
    assert status == 403 and elsewhere in answer
    world.cluster.kubectl("delete", "namespace", elsewhere, "--wait=false")

    nobody = certificates.context(ssl.PROTOCOL_TLS_CLIENT, signed.trusted(namespace))
    with pytest.raises(OSError):
        agent.ask(nobody)
    plain = http.client.HTTPConnection(agent.address, 7410, timeout=5)
    plain.request("GET", "/v1/files")
    answer = plain.getresponse()
    assert answer.status == 412 and b"mutual TLS" in answer.read()
    plain.request("GET", "/metrics")
    metrics = plain.getresponse().read().decode()
    assert 'rouse_certificates_total{outcome="success"} 1' in metrics
    plain.close()


def test_an_agent_without_a_certificate_says_what_it_waits_for_and_serves_nobody(
    world: World, namespace: str, operator: Operator, signed: Certificates, run_agent: Run
):
    found = some_pods(world, namespace, 2)
    peer = signed.context_of(found["m-1"], operator.tls_port)
    operator.kill()
    agent = run_agent(operator, found["m-0"])

    def probe() -> str:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(agent.address, 7410, timeout=5)
            connection.request("GET", "/readyz")
            return connection.getresponse().read().decode()
        return ""

    wait_until("its probe", 20, lambda: "it has no certificate yet: " in probe())
    wait_until("its log", 20, lambda: "no new certificate, trying again" in agent.log.read_text())
    with pytest.raises(OSError):
        agent.ask(peer)
    world.forget_lease()
    operator.start()
    wait_until("its certificate", 30, lambda: agent.serves(peer))


@pytest.mark.timeout(300)
def test_an_authority_is_replaced_under_traffic_and_nobody_is_refused(
    world: World, namespace: str, make_operator, signed: Certificates, run_agent: Run
):
    flags = ("--authority-propagation=6s", "--certificate-lifetime=18s", "--authority-lifetime=1h")
    operator = make_operator("operator-0", "", *flags).start()
    cluster = world.cluster
    found = some_pods(world, namespace, 3)
    agents = [run_agent(operator, found[name]) for name in ("m-0", "m-1")]
    client = found["m-2"]
    for agent in agents:
        ours = signed.context_of(client, operator.tls_port)
        wait_until("its certificate", 20, lambda a=agent, tls=ours: a.serves(tls))
    issuers = {agent.issuer() for agent in agents}
    assert len(issuers) == 1
    bundles = {signed.trusted(namespace)}

    failed: list[str] = []
    asked = [0]
    done = threading.Event()

    def traffic() -> None:
        """As a peer does that renews its own certificate in time."""
        tls, since = signed.context_of(client, operator.tls_port), time.monotonic()
        while not done.wait(0.1):
            try:
                if time.monotonic() - since > 8:
                    signed.forget()
                    tls, since = signed.context_of(client, operator.tls_port), time.monotonic()
                for agent in agents:
                    agent.ask(tls)
                status, answer = tell(operator, tls, report(client))
                if status != 200:
                    failed.append(answer)
                asked[0] += 3
            except OSError as error:
                failed.append(f"{time.strftime('%X')} {error}")

    def kubelet() -> None:
        while not done.wait(1):
            for agent in agents:
                agent.refresh()

    threads = [threading.Thread(target=x, daemon=True) for x in (traffic, kubelet)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    cluster.kubectl("annotate", "secret", SECRET, "-n", SYSTEM, "rouse.dev/replace-authority=now")
    wait_until("two authorities", 20, lambda: signed.trusted(namespace).count("BEGIN CERT") == 2)
    trusted_after = time.monotonic() - begun
    bundles.add(signed.trusted(namespace))
    assert {agent.issuer() for agent in agents} == issuers, "it signs before everybody knows it"

    def renewed() -> bool:
        return all(agent.issuer() not in issuers for agent in agents)

    wait_until("all to be signed by the new one", 60, renewed)
    signed_after = time.monotonic() - begun
    time.sleep(5)
    done.set()
    for thread in threads:
        thread.join(10)
    print(
        f"trusted after {trusted_after:.1f} s, all signed by it after {signed_after:.1f} s, "
        f"{asked[0]} requests"
    )
    assert failed == []
    assert asked[0] > 100
    assert len(bundles) == 2
    assert operator.metric("rouse_trusted_authorities") == 2
    secret = cluster.get("secret", SECRET, SYSTEM)
    assert "rouse.dev/replace-authority" not in secret["metadata"].get("annotations", {})
    assert operator.exits == []


# ---- what pods may do


def test_the_operators_pod_is_admitted_where_only_restricted_ones_are(world: World):
    cluster = world.cluster
    name = world.namespace()
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", name, enforce)
    chart = str(paths.CHART)
    rendered = cluster.helm(
        "template", "rouse", chart, "-n", name, "-s", "templates/deployment.yaml"
    )
    import yaml

    template = yaml.safe_load(rendered)["spec"]["template"]
    spec = {**template["spec"], "serviceAccountName": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": spec}
    cluster.kubectl("create", "--dry-run=server", "-n", name, "-f", "-", stdin=json.dumps(pod))
    # So that this test can fail.
    spec["hostNetwork"] = True
    with pytest.raises(RuntimeError, match="violates PodSecurity"):
        cluster.kubectl("create", "--dry-run=server", "-n", name, "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("node_folder", ["", "/run/rouse"])
def test_instances_are_restricted_but_for_the_nodes_folder(
    world: World, namespace: str, make_operator, node_folder: str
):
    cluster = world.cluster
    cluster.kubectl(
        "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"
    )
    claim = {"persistentVolumeClaim": {"claimName": "models"}}
    model = {"name": "test/model", "storage": claim}
    flags = [f"--agent-node-folder={node_folder}"] if node_folder else []
    make_operator("operator-0", "", *flags).start()
    cluster.apply(modelservice(namespace, 1, model=model))
    if not node_folder:
        wait_until("the pod", 20, lambda: cluster.get("pod", "m-0", namespace))
        return
    said = wait_until(
        "the refusal",
        20,
        lambda: condition(cluster, namespace, "Degraded").get("message", ""),
    )
    assert "violates PodSecurity" in said and "hostPath" in said
    assert cluster.get("pod", "m-0", namespace) is None
