"""Every command in README.md and docs/ is executed, and everything else that stands there in a block is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths

from .pages import LANGUAGES, PAGES, PROGRAMS, Block, Command, blocks, commands, name
from .reader import INSTALLS, Reader, filled, variants
from .test_references import assert_documented

STORY = "tests/test_story.py::test_a_scale_out_is_served_by_the_guard"
#: Executed by another test, word for word or by the same function, which is named.
ELSEWHERE = {
    # rouse_e2e/story.py, step by step.
    "make demo": STORY,
    "make demo KEEP=1": STORY,
    "make references": "tests/docs/test_references.py::test_a_reference_is_as_its_code_says",
    "python3 e2e/make_checkpoint.py /tmp/rouse-models/qwen3-moe": STORY,
    "python3 e2e/engine/build.py /tmp/vllm-cpu.tar /tmp/vllm-cpu": STORY,
    # In the engine's container: the operator makes it the command of the pod.
    "python3 -m rouse_vllm.launch": "../connector/tests/test_launch.py",
    # Needs pods that run; those of this test do not.
    "helm test rouse -n rouse-system": "tests/test_story.py::test_helm_test_asks_the_operator",
    # The same call by another gRPC client, with messages as KEDA has them.
    "grpcurl -plaintext -proto operator/scaler/externalscaler.proto -d "
    '\'{"name": "qwen3", "namespace": "default", "scalerMetadata": {"loadPerReplica": "8"}}\' '
    "localhost:7481 externalscaler.ExternalScaler/IsActive": "tests/operator/test_keda.py",
}
KIND = "kind needs Docker, which is not where the tests run"
KUBELET = "needs a pod that runs; nothing of ours is in it"
BUILDKIT = "only BuildKit has that, and there is no Docker engine where the tests run"
CROSS = "compiles everything for another architecture: minutes, and not part of `make test`"
BOTH = "build --platform linux/amd64,linux/arm64"
CLUSTER = "needs the cluster that `make demo KEEP=1` leaves"
#: Executed by no test, and why.
NEVER = {
    "make test": "it is the run that this test is a part of",
    "make pictures": "a run of the demo's story, and its pictures are never the same",
    "make reproduce": "compiles everything twice without a cache, and is not part of `make test`",
    "make images-arm64": CROSS,
    **{
        f"docker buildx {BOTH} --target {x} -t REGISTRY/rouse-{x}:0.1.0 --push .": BUILDKIT
        for x in ("operator", "agent")
    },
    **{
        f"buildah {BOTH} --build-arg BUILDPLATFORM=linux/amd64 --target {x} --manifest rouse-{x}:0.1.0 .": CROSS
        for x in ("operator", "agent")
    },
    "docker build --target operator -t rouse-operator:0.1.0 "
    "--build-arg ROUSE_COMMIT=$(git rev-parse --short=12 HEAD) "
    "--output type=docker,rewrite-timestamp=true "
    "--build-arg SOURCE_DATE_EPOCH=0 .": BUILDKIT,
    "kubectl debug -it POD --image=debian:12-slim --target=agent": KUBELET,
    "make test-rdma": "a virtual machine under plain emulation: minutes, and not part of `make test`",
    "make test-keda": "builds KEDA first: ten minutes and more, and not part of `make test`",
    "e2e/demo.py --kubeconfig": "needs a cluster that is not ours; its steps are the story's",
    "export KUBECONFIG=$(cd e2e && $(./install.sh) -m rouse_e2e kubeconfig demo)": CLUSTER,
    "cd e2e && $(./install.sh) -m rouse_e2e down demo": CLUSTER,
    "kind create cluster --config kind.yaml": KIND,
    "kind load docker-image rouse-operator:0.1.0 rouse-agent:0.1.0": KIND,
    "kind load image-archive /tmp/vllm-cpu.tar": KIND,
    "kind delete cluster": KIND,
    "kubectl -n rouse-system port-forward deployment/rouse-operator 7481 &": KUBELET,
    "kubectl -n rouse-system logs deployment/rouse-operator --tail=50": KUBELET,
    "kubectl logs POD -c agent --tail=50": KUBELET,
    "kubectl logs POD -c engine --tail=50": KUBELET,
}
#: Those that may end otherwise than with 0: `doctor` finds that the operator is no pod here.
STATUS = {"kubectl rouse doctor": (0, 1)}

BLOCKS = [x for page in PAGES for x in blocks(page)]


# ---- what stands there


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_is_in_it(page: Path):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: one of {LANGUAGES}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_hides_in_a_block_of_text(page: Path):
    begins = re.compile(rf"^\s*\$? ?(?:{'|'.join(PROGRAMS)}) [a-z-]", re.MULTILINE)
    for block in blocks(page):
        if block.language == "text":
            assert not begins.search(block.text), f"{block}: a command: fence it with bash"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_something(page: Path):
    text = re.sub(r"`[^`\n]+`", "", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)}: {target}"


def test_the_lists_of_commands_hold_what_the_pages_have_and_name_tests_that_exist():
    there = {x.text for page in PAGES for x in commands(page)}
    assert (ELSEWHERE.keys() | NEVER.keys()) - there == set(), "no page has it any more"
    assert ELSEWHERE.keys() & NEVER.keys() == set()
    for test in ELSEWHERE.values():
        file, _, function = test.partition("::")
        text = (paths.E2E / file).read_text()
        assert not function or f"def {function}(" in text, test


def test_every_target_of_make_exists():
    makefile = (paths.REPOSITORY / "Makefile").read_text().replace("\\\n", "")
    targets = set(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split())
    given = [x.text.split() for page in PAGES for x in commands(page)]
    used = {words[1] for words in given if words[0] == "make"}
    assert len(used) > 3
    assert used - targets == set()


@pytest.mark.parametrize("block", [x for x in BLOCKS if x.language == "json"], ids=str)
def test_json_is_json(block: Block):
    json.loads(block.text)


# ---- executed


@pytest.fixture(scope="module")
def shared(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """For pages that install nothing, one after the other."""
    reader = Reader(build_folder, tmp_path_factory.mktemp("shared"))
    yield reader
    reader.close()


@pytest.fixture
def own(build_folder: Path, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(build_folder, tmp_path)
    yield reader
    reader.close()


def services(block: Block) -> bool:
    """Whether a page goes on with what this block makes."""
    return block.language == "yaml" and "\nkind: ModelService\n" in block.text


def follow(reader: Reader, page: Path) -> None:
    steps: list[Command | Block] = [*commands(page), *filter(services, blocks(page))]
    for step in sorted(steps, key=lambda x: x.line):
        if isinstance(step, Block):
            reader.cluster.apply(step.text)
            reader.await_instances()
        elif step.text not in ELSEWHERE | NEVER:
            for text in variants(step.text):
                allowed = next((y for x, y in STATUS.items() if text.startswith(x)), (0,))
                reader.type(text, allowed)


def installs(page: Path) -> bool:
    return any(x.text.startswith(tuple(INSTALLS)) for x in commands(page))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [x for x in PAGES if installs(x)], ids=name)
def test_every_command_of_a_page_that_installs(page: Path, own: Reader):
    follow(own, page)
    if own.installed in INSTALLS.values():
        assert_documented("operator", own.operator.get("/metrics")[1])
    if any("docker push" in x.text for x in commands(page)):
        assert len(list(own.registry.glob("*/manifest.json"))) == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [x for x in PAGES if commands(x) and not installs(x)], ids=name)
def test_every_command_of_another_page(page: Path, shared: Reader):
    follow(shared, page)


def test_a_command_that_is_wrong_fails(shared: Reader):
    with pytest.raises(AssertionError, match="status"):
        shared.type("kubectl get modelservices --no-such-flag")
    with pytest.raises(AssertionError, match="status"):
        shared.type("docker run something")


# ---- YAML


@pytest.mark.parametrize("block", [x for x in BLOCKS if x.language == "yaml"], ids=str)
def test_yaml_is_what_the_api_server_takes(block: Block, shared: Reader, tmp_path: Path):
    """Objects of Kubernetes by a dry run; a kustomization by kustomize; other YAML is YAML."""
    documents = [x for x in yaml.safe_load_all(block.text) if x]
    assert documents
    for document in documents:
        if document.get("apiVersion", "").startswith("kind.x-k8s.io/"):
            assert document["kind"] == "Cluster"  # kind reads it, no API server does
        elif "kind" in document:
            if not shared.installed:
                shared.install()
            shared.cluster.kubectl(
                *("apply", "--server-side", "--dry-run=server", "-n", "kube-public", "-f", "-"),
                stdin=json.dumps(document),
            )
        elif "resources" in document:
            relative = os.path.relpath(paths.REPOSITORY, tmp_path)
            text = filled(block.text.replace("PATH/TO", relative))
            (tmp_path / "kustomization.yaml").write_text(text)
            answer = subprocess.run(
                [paths.tool("kubectl"), "kustomize", str(tmp_path)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
            assert "registry.example.com/rouse-operator:0.1.0" in answer.stdout
            assert "--agent-image=registry.example.com/rouse-agent:0.1.0" in answer.stdout
