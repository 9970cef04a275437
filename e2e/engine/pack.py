"""Packs folders into an image tar (`docker save` format) that containerd imports.

One layer per folder. Every byte is written once: a layer is hashed while it goes into the outer
tar. Owners are root, times are zero and the order is fixed, so equal folders give equal images.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


@dataclass
class Layer:
    folder: Path
    prefix: str = ""  # where the folder's content goes in the image


@dataclass
class Config:
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    user: str = ""
    workdir: str = "/"


class _HashingFile:
    """A write-only file that counts and hashes what passes."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.count, self.digest = out, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.out.write(data)
        self.count += len(data)
        self.digest.update(data)
        return len(data)

    def tell(self) -> int:
        return self.count


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _write_layer(out: BinaryIO, name: str, layer: Layer) -> str:
    header_at = out.tell()
    out.write(_header(name, 0))  # the size is filled in afterwards
    sink = _HashingFile(out)
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
        path = ""
        for part in [x for x in layer.prefix.split("/") if x]:
            entry = tarfile.TarInfo(path + part)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
            path += part + "/"
        for child in sorted(os.listdir(layer.folder)):
            tar.add(layer.folder / child, arcname=path + child, filter=_anonymous)
    out.write(b"\0" * (-sink.count % 512))
    end = out.tell()
    out.seek(header_at)
    out.write(_header(name, sink.count))
    out.seek(end)
    return "sha256:" + sink.digest.hexdigest()


def pack(target: Path, reference: str, layers: list[Layer], config: Config) -> None:
    names = [f"layer{number}/layer.tar" for number in range(len(layers))]
    partial = target.with_suffix(".partial")
    with open(partial, "wb", buffering=1 << 20) as out:

        def small(name: str, data: bytes) -> None:
            out.write(_header(name, len(data)) + data + b"\0" * (-len(data) % 512))

        digests = [
            _write_layer(out, name, layer) for name, layer in zip(names, layers, strict=True)
        ]
        document = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {
                    "Env": [f"{key}={value}" for key, value in config.environment.items()],
                    "Entrypoint": config.entrypoint,
                    "User": config.user,
                    "WorkingDir": config.workdir,
                },
                "rootfs": {"type": "layers", "diff_ids": digests},
                "history": [
                    {"created": "1970-01-01T00:00:00Z", "created_by": "pack"} for _ in names
                ],
            }
        ).encode()
        document_name = hashlib.sha256(document).hexdigest() + ".json"
        small(document_name, document)
        manifest = [{"Config": document_name, "RepoTags": [reference], "Layers": names}]
        small("manifest.json", json.dumps(manifest).encode())
        out.write(b"\0" * 1024)
    partial.rename(target)
