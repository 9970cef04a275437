"""The bill of materials of an image of ours, as SPDX 2.3: Debian's packages, what is compiled in, every other file.

    python -m rouse_e2e.sbom IMAGE.tar > IMAGE.spdx.json

All of it is read from the image (`docker save`, `buildah push ... docker-archive:`), so it is that of the image
whoever built it. The same image gives the same text.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from spdx_tools.common.spdx_licensing import spdx_licensing as licensing
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
    PackageVerificationCode,
    Relationship,
    RelationshipType,
    SpdxNoAssertion,
)
from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

from . import image_tar

STATUS = "var/lib/dpkg/status.d/"  # config/images/unpack.sh
COMPILED_IN = "usr/share/rouse/compiled-in"  # the Dockerfile
COPYRIGHT = "/usr/share/doc/{}/copyright in the image"
IMAGE, OURS = "SPDXRef-Image", "SPDXRef-Rouse"


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


def debian_packages(tar: Path) -> list[Debian]:
    found = []
    texts = {x: y.decode() for x, y in image_tar.read_files(tar, STATUS).items()}
    for path in sorted(texts):
        if path.endswith(".md5sums"):
            continue
        fields = dict(
            x.split(": ", 1) for x in texts[path].splitlines() if re.match(r"[A-Z][A-Za-z-]*: ", x)
        )
        sums = texts[f"{path}.md5sums"].splitlines()
        found.append(
            Debian(
                *(fields[x] for x in ("Package", "Version", "Architecture", "Maintainer")),
                fields.get("Homepage"),
                frozenset(x.split(maxsplit=1)[1] for x in sums),
            )
        )
    return found


def moment(text: str) -> datetime:
    """Of a date in an image's configuration, which may have nanoseconds."""
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))


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
        license_comment=COPYRIGHT.format(package.name),
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
        license_comment=COPYRIGHT.format(name) if text.startswith("pkg:deb/") else None,
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


def ours(name: str, version: str | None, files: list[File]) -> Package:
    """What no package of Debian's brought."""
    sums = sorted(
        x.value for f in files for x in f.checksums if x.algorithm == ChecksumAlgorithm.SHA1
    )
    code = hashlib.sha1("".join(sums).encode(), usedforsecurity=False).hexdigest()
    return Package(
        spdx_id=OURS,
        name=name,
        version=version,
        download_location=SpdxNoAssertion(),
        files_analyzed=True,
        verification_code=PackageVerificationCode(code),
        license_concluded=SpdxNoAssertion(),
        license_declared=licensing.parse("Apache-2.0"),
        license_comment=COPYRIGHT.format("rouse"),
        copyright_text=SpdxNoAssertion(),
        primary_package_purpose=PackagePurpose.APPLICATION,
    )


def whole(image: image_tar.Image, name: str, version: str | None) -> Package:
    digest = image.identity.removeprefix("sha256:")
    return Package(
        spdx_id=IMAGE,
        name=f"{name} (image)",
        version=version,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_concluded=SpdxNoAssertion(),
        license_declared=SpdxNoAssertion(),
        copyright_text=SpdxNoAssertion(),
        primary_package_purpose=PackagePurpose.CONTAINER,
        comment=f"{image.config['os']}/{image.config['architecture']}; the checksum is its configuration's",
        checksums=[Checksum(ChecksumAlgorithm.SHA256, digest)],
    )


def document(tar: Path) -> Document:
    image = image_tar.read(tar)
    name, _, tag = image.name.rpartition("/")[2].partition(":")
    debian = debian_packages(tar)
    packed = frozenset().union(*(x.files for x in debian))
    files = [
        of_file(entry)
        for path, entry in sorted(image.files().items())
        if entry.sha256 and path not in packed and not path.startswith(STATUS)
    ]
    packages = [ours(name, tag or None, files), *map(of_debian, debian)]
    compiled = [of_purl(x) for x in image_tar.read_file(tar, COMPILED_IN).decode().split()]
    programs = [x for x in files if x.name.startswith("./usr/bin/rouse-")]
    contains, links = RelationshipType.CONTAINS, RelationshipType.STATIC_LINK
    relationships = [Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, IMAGE)]
    relationships += [Relationship(IMAGE, contains, x.spdx_id) for x in packages]
    relationships += [Relationship(OURS, contains, x.spdx_id) for x in files]
    relationships += [Relationship(p.spdx_id, links, x.spdx_id) for p in programs for x in compiled]
    return Document(
        CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id="SPDXRef-DOCUMENT",
            name=name,
            document_namespace=f"https://rouse.dev/spdx/{name}/{image.identity.replace(':', '-')}",
            creators=[Actor(ActorType.TOOL, "rouse_e2e.sbom")],
            created=moment(image.config["created"]),
        ),
        packages=[whole(image, name, tag or None), *packages, *compiled],
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
