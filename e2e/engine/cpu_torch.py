"""Turns PyPI's CUDA build of torch 2.11 into one that runs without NVIDIA's packages.

PyPI has torch for CUDA only, and its `libtorch_python.so` links against `libtorch_cuda.so`, which
pulls in gigabytes of CUDA libraries. A CPU engine calls none of them. This replaces the libraries
at the border by stubs of a few kilobytes that define just the symbols the rest was linked
against; a stub that is called prints its name and aborts, so nothing can go wrong silently.

For the test image only: `torch.cuda` stays "not available".
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

# What links against the libraries that become stubs.
USERS = ("libtorch_python.so", "libtorch_cpu.so", "libtorch.so", "libshm.so", "libc10_cuda.so")
# What nobody needs once the stubs are there.
DROPPED = (
    "lib/libtorch_cuda_linalg.so",
    "lib/libtorch_nvshmem.so",
    "lib/libcaffe2_nvrtc.so",
    "bin/ptxas",
    "bin/protoc",
    "bin/protoc-3.13.0.0",
)


def _nm(library: Path, which: str) -> list[str]:
    result = subprocess.run(
        ["nm", "-D", which, str(library)], check=True, capture_output=True, text=True
    )
    return [line.split()[-1] for line in result.stdout.splitlines() if line.strip()]


def _names(library: Path, which: str) -> set[str]:
    return {symbol.split("@")[0] for symbol in _nm(library, which)}


def _definition(symbol: str) -> str:
    if symbol.startswith("_ZTI"):  # type info: dynamic_cast and exceptions read it
        return (
            f"const struct{{void*v;const char*n;}} {symbol}="
            f'{{&_ZTVN10__cxxabiv117__class_type_infoE[2],"{symbol[4:]}"}};'
        )
    if symbol.startswith("_ZT"):  # virtual tables
        return f"void*{symbol}[64];"
    if symbol == "_ZN4c10d15get_gil_checkerEv":  # called while libtorch_python loads
        return f"void*{symbol}(void){{return cell;}}"
    if "is_nvshmem_available" in symbol:
        return f"int {symbol}(void){{return 0;}}"
    if symbol.startswith("cupti"):
        return f"int {symbol}(void){{return 999;}}"  # CUPTI_ERROR_UNKNOWN
    return f'void {symbol}(void){{die("{symbol}");}}'


def _stub(target: Path, symbols: set[str], versions: dict[str, str]) -> None:
    source = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "static void die(const char*n)"
        '{fprintf(stderr,"stub of a CUDA function called: %s\\n",n);abort();}',
        "extern void*_ZTVN10__cxxabiv117__class_type_infoE[]; static void*cell[64];",
        *(_definition(symbol) for symbol in sorted(symbols)),
    ]
    # ld.so stops with an assertion if a symbol lacks the version its users were linked against.
    nodes: dict[str, list[str]] = {}
    for symbol in sorted(symbols):
        if symbol in versions:
            nodes.setdefault(versions[symbol], []).append(symbol)
    with tempfile.TemporaryDirectory() as work:
        code, script, built = (Path(work, name) for name in ("stub.c", "stub.map", "stub.so"))
        code.write_text("\n".join(source) + "\n")
        script.write_text(
            "".join(f"{node} {{ global: {'; '.join(names)}; }};\n" for node, names in nodes.items())
        )
        subprocess.run(
            ["gcc", "-O1", "-w", "-fno-builtin", "-shared", "-fPIC", "-s"]
            + [f"-Wl,-soname,{target.name}"]
            + ([f"-Wl,--version-script={script}"] if nodes else [])
            + ["-o", str(built), str(code), "-lstdc++"],
            check=True,
        )
        target.unlink(missing_ok=True)
        target.write_bytes(built.read_bytes())
        target.chmod(0o755)


def convert(site_packages: Path) -> None:
    torch = site_packages / "torch"
    lib = torch / "lib"
    users = [lib / name for name in USERS]
    undefined: set[str] = set()
    versions: dict[str, str] = {}
    for user in users:
        for symbol in _nm(user, "--undefined-only"):
            name, _, version = symbol.partition("@")
            undefined.add(name)
            if version:
                versions[name] = version.lstrip("@")
    cpu = set().union(*(_names(x, "--defined-only") for x in [*users, lib / "libc10.so"]))
    gpu = _names(lib / "libtorch_cuda.so", "--defined-only")
    gpu |= _names(lib / "libtorch_nvshmem.so", "--defined-only")
    _stub(lib / "libtorch_cuda.so", (undefined & gpu) - cpu, versions)
    for name, prefix in (
        ("libcudnn.so.9", "cudnn"),
        ("libcufile.so.0", "cuFile"),
        ("libcupti.so.13", "cupti"),
    ):
        _stub(lib / name, {x for x in undefined if x.startswith(prefix)}, versions)
    for name in DROPPED:
        (torch / name).unlink(missing_ok=True)
