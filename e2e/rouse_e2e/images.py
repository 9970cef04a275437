"""Images without a registry, each made once per content and kept in the cache folder.

- pause: a few lines of C;
- the engine: e2e/engine, kept not as a tar but as the folder of a containerd that has imported
  it, because importing takes a minute. A node gets a copy made of hard links (the runtime never
  changes a blob or a read-only layer in place) and real copies of its small databases;
- Rouse's own: the repository's Dockerfile, by buildah.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import paths

sys.path.insert(0, str(paths.E2E / "engine"))
import build as engine  # noqa: E402
import pack  # noqa: E402

PAUSE = "localhost/pause:1"
ENGINE = engine.REFERENCE
BASE = "docker.io/library/debian:12-slim"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What Debian's slim image leaves out, and what it does so that layers stay small.
SLIM = tuple(
    f"/usr/share/{name}/*" for name in ("doc", "info", "linda", "lintian", "locale", "man")
)
NO_PACKAGE_FILES = (
    'DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb";}; '
    'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
)
TIDY = (
    f"echo '{NO_PACKAGE_FILES}' > \"$1/etc/apt/apt.conf.d/docker-clean\"",
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*',
)


def pause_tar() -> Path:
    source = paths.E2E / "rouse_e2e" / "pause.c"
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    target = paths.cache("images", f"pause-{key}.tar")
    with paths.locked("pause"):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as work:
                subprocess.run(
                    ["gcc", "-Os", "-static", "-s", "-o", f"{work}/pause", str(source)], check=True
                )
                config = pack.Config(entrypoint=["/pause"])
                pack.pack(target, PAUSE, [pack.Layer(Path(work))], config)
    return target


# ---- the engine, in a containerd's folder


def containerd_template(say=lambda text: None) -> Path:
    target = paths.cache("containerd", engine.key())
    with paths.locked("engine"):
        if not (target / "done").exists():
            work = paths.cache("engine", "work")
            tar = paths.cache("engine", f"{engine.key()}.tar")
            if not tar.exists():
                say("building the engine image (vLLM on CPU, once; about two minutes)")
                engine.build(tar, work)
            say("importing the engine image into a containerd of its own (once)")
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            _import_into(target, tar)
            (target / "done").touch()
            tar.unlink()
            shutil.rmtree(work, ignore_errors=True)
            for old in sorted(target.parent.iterdir(), key=os.path.getmtime)[:-2]:
                shutil.rmtree(old)  # running nodes have links of their own
    return target / "root"


def engine_packages() -> Path:
    """The engine image's Python packages as a folder, to be read only."""
    snapshots = containerd_template() / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    for folder in snapshots.glob(f"*/fs/{engine.SITE_PACKAGES}"):
        if (folder / "vllm").is_dir():
            return folder
    raise RuntimeError(f"{snapshots} holds no vLLM; delete {paths.cache('containerd')}")


def _import_into(target: Path, tar: Path) -> None:
    config = target / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    socket = target / "state" / "containerd.sock"
    with open(target / "containerd.log", "w") as log:
        # A mount namespace of its own: unpacking mounts every layer for a moment.
        daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--"]
            + ["unshare", "--mount", "--propagation", "private", "--"]
            + ["containerd", "--config", str(config), "--root", str(target / "root")]
            + ["--state", str(target / "state"), "--address", str(socket)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd did not start: {target}/containerd.log")
            time.sleep(0.1)
        subprocess.run(
            ["ctr", "--address", str(socket), "-n", "k8s.io", "images", "import", str(tar)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    finally:
        daemon.terminate()
        daemon.wait(30)
        shutil.rmtree(target / "state", ignore_errors=True)


def clone_containerd(template: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-al", str(template), str(target)], check=True)
    for database in target.rglob("*.db"):
        if database.name in ("meta.db", "metadata.db"):
            copy = database.with_suffix(".copy")
            shutil.copy2(database, copy)
            copy.rename(database)


# ---- Rouse's own

# What the Dockerfile copies; everything else can change without a new image.
CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "CMakeLists.txt",
    "LICENSE",
    "common",
    "operator",
    "agent",
    "connector",
    "config/images",
)


def commit() -> str:
    """What --version prints: the last commit that changed what the images are made of, so that they stay the same as
    long as that does. A clone that is not whole may know a later one only."""
    # Of one length, whatever else is in the clone.
    command = ["git", "-C", str(paths.REPOSITORY), "-c", "core.abbrev=12", "log", "-1"]
    command += ["--format=%h", "--", *CONTEXT, ":(exclude,glob)**/tests/**"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


@functools.cache
def context_key() -> str:
    """Once in a program: a node that joins a cluster later gets what the others have, whatever was edited."""
    digest = hashlib.sha256(commit().encode())
    for entry in CONTEXT:
        top = paths.REPOSITORY / entry
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = file.relative_to(paths.REPOSITORY)
            caches = any(part.startswith(".") for part in name.parts[1:])  # of linters
            if file.is_file() and not caches and not {"__pycache__", "tests"} & set(name.parts):
                digest.update(str(name).encode() + b"\0")
                digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def here() -> str:
    """This machine's architecture, as Debian and Docker call it."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def rouse_reference(target: str) -> str:
    return f"localhost/rouse-{target}:e2e"


def rouse_tars(say=lambda text: None) -> dict[str, Path]:
    """{"operator": tar, "agent": tar}, built from the Dockerfile if anything has changed."""
    key = context_key()
    tars = {x: paths.cache("images", f"rouse-{x}-{key}.tar") for x in ("operator", "agent")}
    with paths.locked("buildah"):
        missing = {name: tar for name, tar in tars.items() if not tar.exists()}
        if missing:
            buildah = Buildah()
            buildah.ensure_base(say)
            for name, tar in missing.items():
                say(f"building image {rouse_reference(name)} from the Dockerfile")
                buildah.build(name, tar)
            for old in paths.cache("images").glob("rouse-*.tar"):
                if old not in tars.values():
                    old.unlink()
    return tars


class Buildah:
    """buildah with storage of its own in the cache folder, and chroot isolation."""

    def __init__(self) -> None:
        self.root = paths.cache("buildah")
        for name in ("root", "run", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        paths.cache("ccache").mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: str, capture: bool = False) -> str:
        result = subprocess.run(
            # Its storage driver leaves a mount behind; a namespace of its own takes it along.
            ["unshare", "--mount", "--propagation", "private", "--", "buildah"]
            + ["--root", str(self.root / "root"), "--runroot", str(self.root / "run")]
            + [*arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else sys.stderr,
            text=True,
            env=dict(os.environ, BUILDAH_ISOLATION="chroot", TMPDIR=str(self.root / "tmp")),
        )
        if result.returncode:
            raise RuntimeError(f"buildah {' '.join(arguments)}: exit status {result.returncode}")
        return result.stdout or ""

    def ensure_base(self, say) -> None:
        """The image that `FROM debian:12-slim` names, made of Debian's own packages."""
        recipe = [f"--dpkgopt=path-exclude={pattern}" for pattern in SLIM]
        recipe += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        recipe += [f"--customize-hook={command}" for command in TIDY]
        mark = f"localhost/rouse-base:{hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]}"
        listed = self.run("images", "--format", "{{.Name}}:{{.Tag}}", capture=True).split()
        if BASE in listed and mark in listed:
            return
        say(f"making {BASE} from Debian's packages (once)")
        with tempfile.TemporaryDirectory(dir=self.root / "tmp") as work:
            tar = Path(work, "base.tar")
            subprocess.run(
                ["mmdebstrap", "--quiet", "--variant=minbase", *recipe, "bookworm", str(tar)],
                check=True,
            )
            container = self.run("from", "scratch", capture=True).strip()
            try:
                self.run("add", "--quiet", container, str(tar), "/", capture=True)
                self.run("config", "--cmd", "bash", container)
                self.run("commit", "--quiet", container, BASE, capture=True)
                self.run("tag", BASE, mark)
            finally:
                self.run("rm", container, capture=True)

    def build(self, target: str, tar: Path) -> None:
        reference = rouse_reference(target)
        self.build_in_storage(target, reference)
        tar.parent.mkdir(parents=True, exist_ok=True)
        partial = tar.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        self.run("push", "--quiet", reference, f"docker-archive:{partial}:{reference}")
        partial.rename(tar)

    def published(self, reference: str) -> tuple[str, int]:
        """What a registry that it is pushed to says: the manifest's digest, and the bytes of all layers there."""
        with tempfile.TemporaryDirectory(dir=self.root / "tmp") as work:
            self.run("push", "--quiet", reference, f"oci:{work}/image")
            folder = Path(work, "image")
            (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
            blob = folder / "blobs" / entry["digest"].replace(":", "/")
            manifest = json.loads(blob.read_text())
        return entry["digest"], sum(x["size"] for x in manifest["layers"])

    def build_in_storage(self, target: str, reference: str, architecture: str = "") -> None:
        """As docs/images.md says, with layers and a compiler cache that are kept."""
        self.bud(
            *("--layers", "--target", target, "--tag", reference),
            *(["--platform", f"linux/{architecture}"] if architecture else []),
            *("--build-arg", f"ROUSE_COMMIT={commit()}"),
        )

    def bud(self, *arguments: str) -> None:
        """With what is this machine's: bases that were made here, caches, and its certificate authorities, in case
        the network has one of its own."""
        self.run(
            *("bud", "--pull=never", "--network=host"),
            *("--volume", f"{paths.cache('ccache')}:/ccache"),
            *("--volume", f"{CERTIFICATES}:/tmp/certificates.crt:ro"),
            *("--build-arg", "PIP_CERT=/tmp/certificates.crt"),
            *("--build-arg", f"JOBS={os.cpu_count()}"),
            # Layers that are kept have the date that they were made with: always the same one.
            *("--timestamp", "0"),
            # Newer ones know that of themselves, as Docker does.
            *("--build-arg", f"BUILDPLATFORM=linux/{here()}"),
            *arguments,
            str(paths.REPOSITORY),
        )
