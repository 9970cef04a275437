"""What is in an image, read from the tar that `docker save` and buildah's docker-archive write."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Entry:
    """One of a layer: everything by which two can differ."""

    path: str  # without a slash at its beginning
    kind: str  # as tarfile has it
    mode: int
    owner: tuple[int, int]
    modified: float
    link: str
    extended: tuple[tuple[str, str], ...]  # attributes
    size: int
    sha256: str  # of a regular file
    sha1: str


@dataclass(frozen=True)
class Layer:
    digest: str  # of the tar, not compressed
    entries: list[Entry] = field(repr=False)


@dataclass(frozen=True)
class Image:
    name: str
    identity: str  # digest of the configuration, which has those of all layers
    config: dict
    layers: list[Layer]

    def files(self) -> dict[str, Entry]:
        """Of the root that the layers make, by path."""
        found: dict[str, Entry] = {}
        for layer in self.layers:
            for entry in layer.entries:
                if Path(entry.path).name.startswith(".wh."):
                    raise ValueError(f"{entry.path}: a layer takes away what another brought")
                found[entry.path] = entry
        return found


def _digests(stream: IO[bytes] | None) -> tuple[str, str]:
    if stream is None:
        return "", ""
    strong, weak = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    while block := stream.read(1 << 20):
        strong.update(block)
        weak.update(block)
    return strong.hexdigest(), weak.hexdigest()


def _entries(layer: tarfile.TarFile) -> list[Entry]:
    found = []
    for each in layer:
        strong, weak = _digests(layer.extractfile(each) if each.isreg() else None)
        known = ("path", "linkpath", "size", "mtime", "atime", "ctime", "uid", "gid")
        extended = tuple(sorted(x for x in each.pax_headers.items() if x[0] not in known))
        found.append(
            Entry(
                path=each.name.removeprefix("./").strip("/"),
                kind=each.type.decode(),
                mode=each.mode,
                owner=(each.uid, each.gid),
                modified=each.mtime,
                link=each.linkname,
                extended=extended,
                size=each.size if each.isreg() else 0,
                sha256=strong,
                sha1=weak,
            )
        )
    return found


def read(tar: Path) -> Image:
    with tarfile.open(tar) as archive:

        def member(name: str) -> IO[bytes]:
            stream = archive.extractfile(name)
            assert stream is not None, f"{tar}: {name} is no file"
            return stream

        (manifest,) = json.load(member("manifest.json"))
        text = member(manifest["Config"]).read()
        config = json.loads(text)
        layers = []
        for name, digest in zip(manifest["Layers"], config["rootfs"]["diff_ids"], strict=True):
            with tarfile.open(fileobj=member(name)) as layer:
                layers.append(Layer(digest, _entries(layer)))
        identity = f"sha256:{hashlib.sha256(text).hexdigest()}"
        return Image((manifest["RepoTags"] or [""])[0], identity, config, layers)


def read_file(tar: Path, path: str) -> bytes:
    """One file's content: that of the last layer that has it."""
    found = read_files(tar, path)
    if path not in found:
        raise FileNotFoundError(f"{tar}: no {path}")
    return found[path]


def read_files(tar: Path, prefix: str) -> dict[str, bytes]:
    """The contents of all files whose paths begin so."""
    found = {}
    with tarfile.open(tar) as archive:
        stream = archive.extractfile("manifest.json")
        assert stream is not None
        (manifest,) = json.load(stream)
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                for each in layer:
                    path = each.name.removeprefix("./").strip("/")
                    if each.isreg() and path.startswith(prefix):
                        file = layer.extractfile(each)
                        assert file is not None
                        found[path] = file.read()
    return found


def first_difference(one: Image, other: Image) -> str:
    """In words; empty where the two are the same image."""
    if one.identity == other.identity:
        return ""
    for number, (mine, theirs) in enumerate(zip(one.layers, other.layers, strict=False), 1):
        if mine.digest == theirs.digest:
            continue
        left, right = ({x.path: x for x in y.entries} for y in (mine, theirs))
        for path in sorted(left.keys() | right.keys()):
            if path not in left or path not in right:
                return f"layer {number}: only one has {path}"
            if left[path] != right[path]:
                parts = vars(left[path]).items() - vars(right[path]).items()
                names = ", ".join(sorted(x for x, _ in parts))
                return f"layer {number}: {path}: {names}"
        return f"layer {number}: the order of its files"
    if len(one.layers) != len(other.layers):
        return f"{len(one.layers)} layers and {len(other.layers)}"
    for key in sorted(one.config.keys() | other.config.keys()):
        if one.config.get(key) != other.config.get(key):
            return f"configuration, {key}: {one.config.get(key)} and {other.config.get(key)}"
    return "the configuration's text"
