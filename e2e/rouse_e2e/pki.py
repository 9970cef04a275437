"""Throw-away certificates, keys and tokens for one cluster."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

# user in the kubeconfig → (user name for the API server, group)
USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kwok": ("kwok", "system:masters"),
    "kube-proxy": ("system:kube-proxy", ""),
    "nobody": ("nobody-in-particular", ""),  # authenticated, no rights: for RBAC tests
}
NODES = 2  # that kubelets may be
CLIENT = "extendedKeyUsage=clientAuth\n"


def kubelet(number: int) -> str:
    """The user in the kubeconfig of a node's kubelet."""
    return f"kubelet-{number}"


NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


def _openssl(*arguments: str, input_text: str | None = None) -> None:
    result = subprocess.run(
        ["openssl", *arguments], input=input_text, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"openssl {' '.join(arguments)}: {result.stderr.strip()}")


def _key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path))


def certificate(folder: Path, name: str, subject: str, extensions: str) -> None:
    """One that the authority of `folder` has signed: NAME.key and NAME.crt."""
    key, request, options = (folder / f"{name}.{kind}" for kind in ("key", "csr", "ext"))
    _key(key)
    _openssl("req", "-new", "-key", str(key), "-subj", subject, "-out", str(request))
    options.write_text(extensions)
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", "30", "-extfile", str(options)),
        *("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")),
        *("-set_serial", f"0x{secrets.token_hex(8)}", "-out", str(folder / f"{name}.crt")),
    )
    request.unlink()
    options.unlink()


def create_authority(folder: Path) -> None:
    """ca.key and ca.crt."""
    _key(folder / "ca.key")
    _openssl(
        *("req", "-x509", "-new", "-key", str(folder / "ca.key"), "-days", "30"),
        *("-subj", "/CN=rouse-e2e", "-out", str(folder / "ca.crt")),
    )


def create(folder: Path, node: str, addresses: list[str]) -> None:
    """Fills `folder`; `addresses` are the IP addresses that the servers answer on, `node` is the name of
    the one where they are."""
    mask = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        create_authority(folder)
        names = ",".join(
            [f"IP:{x}" for x in ("127.0.0.1", "10.96.0.1", *addresses)]
            + [f"DNS:{x}" for x in (*NAMES, node)]
        )
        server = f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n"
        certificate(folder, "kube-apiserver", "/CN=kube-apiserver", server)
        certificate(folder, "kubelet", "/CN=kubelet", server)
        certificate(folder, "kubelet-client", "/O=system:masters/CN=kubelet-client", CLIENT)
        _key(folder / "sa.key")
        _openssl("ec", "-in", str(folder / "sa.key"), "-pubout", "-out", str(folder / "sa.pub"))
        kubelets = {kubelet(x): (f"system:node:node-{x}", "system:nodes") for x in range(NODES)}
        users = {**USERS, **kubelets}
        lines = []
        for name, (user, group) in users.items():
            token = secrets.token_hex(16)
            (folder / f"{name}.token").write_text(token)
            lines.append(f'{token},{user},{user},"{group}"' if group else f"{token},{user},{user}")
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
    finally:
        os.umask(mask)


def write_kubeconfig(path: Path, folder: Path, user: str, server: str) -> None:
    path.touch(mode=0o600)
    path.write_text(
        f"""apiVersion: v1
kind: Config
clusters: [{{name: e2e, cluster: {{server: "{server}", certificate-authority: {folder}/ca.crt}}}}]
users: [{{name: {user}, user: {{token: "{(folder / f"{user}.token").read_text()}"}}}}]
contexts: [{{name: e2e, context: {{cluster: e2e, user: {user}}}}}]
current-context: e2e
"""
    )
