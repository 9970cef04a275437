"""The bill of materials of an image of ours, as SPDX 2.3: Debian's packages, what is compiled in, every other file.

    python -m rouse_e2e.sbom IMAGE.tar > IMAGE.spdx.json

All of it is read from the image (`docker save`, `buildah push ... docker-archive:`), so it is that of the image
whoever built it. The same image gives the same text.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from spdx_tools.spdx.model import (
    Actor,
    ActorType,
    Checksum,
    ChecksumAlgorithm,
    CreationInfo,
    Document,
    ExternalPackageRef,
    ExternalPackageRefCategory,
    File,
    Package,
    PackagePurpose,
    Relationship,
    RelationshipType,
    SpdxNoAssertion,
)
from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

from . import image_tar

STATUS = "var/lib/dpkg/status.d/"  # images/unpack.sh
COMPILED_IN = "usr/share/rouse/compiled-in"  # the Dockerfile
ROOT = "SPDXRef-Image"


@dataclass(frozen=True)
class Debian:
    """A package of Debian's, as its control file says."""

    name: str
    version: str
    architecture: str
    maintainer: str
    homepage: str | None
    files: frozenset[str]

    @property
    def purl(self) -> str:
        version = quote(self.version, safe="~")
        return (
            f"pkg:deb/debian/{quote(self.name)}@{version}?arch={self.architecture}&distro=debian-12"
        )


def debian_packages(tar: Path, image: image_tar.Image) -> list[Debian]:
    found = []
    for path in sorted(image.files()):
        if not path.startswith(STATUS) or path.endswith(".md5sums"):
            continue
        fields = dict(
            x.split(": ", 1)
            for x in image_tar.read_file(tar, path).decode().splitlines()
            if re.match(r"[A-Z][A-Za-z-]*: ", x)
        )
        sums = image_tar.read_file(tar, f"{path}.md5sums").decode().splitlines()
        found.append(
            Debian(
                *(fields[x] for x in ("Package", "Version", "Architecture", "Maintainer")),
                fields.get("Homepage"),
                frozenset(x.split(maxsplit=1)[1] for x in sums),
            )
        )
    return found


def identifier(*parts: str) -> str:
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(parts))


def of_debian(package: Debian) -> Package:
    maintainer = re.fullmatch(r"(.*?) <(.*)>", package.maintainer)
    name, mail = maintainer.groups() if maintainer else (package.maintainer, None)
    return Package(
        spdx_id=identifier("deb", package.name),
        name=package.name,
        version=package.version,
        supplier=Actor(ActorType.ORGANIZATION, name, mail),
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        homepage=package.homepage,
        license_concluded=SpdxNoAssertion(),
        license_declared=SpdxNoAssertion(),
        license_comment=f"/usr/share/doc/{package.name}/copyright in the image",
        copyright_text=SpdxNoAssertion(),
        primary_package_purpose=PackagePurpose.LIBRARY,
        external_references=[purl(package.purl)],
    )


def of_purl(text: str) -> Package:
    name, version = re.fullmatch(r"pkg:.*/([^/@]+)@(.+)", text).groups()
    return Package(
        spdx_id=identifier("compiled-in", name),
        name=name,
        version=version,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_concluded=SpdxNoAssertion(),
        license_declared=SpdxNoAssertion(),
        copyright_text=SpdxNoAssertion(),
        external_references=[purl(text)],
    )


def purl(text: str) -> ExternalPackageRef:
    return ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", text)


def of_file(entry: image_tar.Entry) -> File:
    return File(
        spdx_id=identifier("File", entry.sha256[:12], entry.path),
        name=f"./{entry.path}",
        checksums=[
            Checksum(ChecksumAlgorithm.SHA1, entry.sha1),
            Checksum(ChecksumAlgorithm.SHA256, entry.sha256),
        ],
    )


def document(tar: Path) -> Document:
    image = image_tar.read(tar)
    name, _, version = image.name.rpartition("/")[2].partition(":")
    digest = image.identity.removeprefix("sha256:")
    whole = Package(
        spdx_id=ROOT,
        name=name,
        version=version or None,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_concluded=SpdxNoAssertion(),
        license_declared=SpdxNoAssertion(),
        copyright_text=SpdxNoAssertion(),
        primary_package_purpose=PackagePurpose.CONTAINER,
        comment=f"Configuration {image.identity}; {image.config['os']}/{image.config['architecture']}.",
        checksums=[Checksum(ChecksumAlgorithm.SHA256, digest)],
    )
    debian = debian_packages(tar, image)
    compiled = [of_purl(x) for x in image_tar.read_file(tar, COMPILED_IN).decode().split()]
    packed = frozenset().union(*(x.files for x in debian))
    files = [of_file(x) for p, x in sorted(image.files().items()) if x.sha256 and p not in packed]
    packages = [of_debian(x) for x in debian]
    programs = [x for x in files if x.name.startswith("./usr/bin/rouse-")]
    relationships = [Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, ROOT)]
    relationships += [
        Relationship(ROOT, RelationshipType.CONTAINS, x.spdx_id) for x in [*packages, *files]
    ]
    relationships += [
        Relationship(program.spdx_id, RelationshipType.STATIC_LINK, x.spdx_id)
        for program in programs
        for x in compiled
    ]
    created = datetime.fromisoformat(image.config["created"].partition(".")[0].rstrip("Z"))
    return Document(
        CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id="SPDXRef-DOCUMENT",
            name=name,
            document_namespace=f"https://rouse.dev/spdx/{name}/{digest}",
            creators=[Actor(ActorType.TOOL, "rouse_e2e.sbom")],
            created=created,
        ),
        packages=[whole, *packages, *compiled],
        files=files,
        relationships=relationships,
    )


def text(tar: Path) -> str:
    """Raises where what it says is no valid SPDX."""
    stream = io.StringIO()
    write_document_to_stream(document(tar), stream, validate=True)
    return stream.getvalue() + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(text(Path(sys.argv[1])), end="")
