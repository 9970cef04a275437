"""Rouse's two images, as the other tests and the demo use them: what is in them, and that nothing tells of their build."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from rouse_e2e import image_tar, images, paths, sbom
from rouse_e2e.image_tar import Image

PAGE = paths.REPOSITORY / "docs" / "images.md"
PROGRAMS = {"operator": "usr/bin/rouse-operator", "agent": "usr/bin/rouse-agent"}
#: What installing writes, which has dates, random numbers or an order in it.
LEFTOVERS = re.compile(
    r"(^|/)(__pycache__|[^/]+\.pyc|aux-cache|ld\.so\.cache|lists|pkgcache\.bin|machine-id|hostname|resolv\.conf)(/|$)"
    r"|^var/(log|cache|backups|tmp)/.|^(tmp|root|home|run)/.|^etc/(shadow|gshadow|.*-)$|^var/lib/dpkg/(status|info|.*-old)$"
)
#: What nobody who gets into a container shall find.
TOOLS = re.compile(
    r"(^|/)s?bin/(sh|bash|dash|busybox|apt.*|dpkg.*|perl.*|python.*|su|mount|passwd)$"
)


@pytest.fixture(scope="module", params=list(PROGRAMS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tar(name: str) -> Path:
    return images.rouse_tars(print)[name]


@pytest.fixture(scope="module")
def image(tar: Path) -> Image:
    return image_tar.read(tar)


@pytest.fixture(scope="module")
def bill(tar: Path) -> dict:
    return json.loads(sbom.text(tar))


def test_everything_in_an_image_has_one_date_and_owners_that_are_no_accident(image: Image):
    entries = [entry for layer in image.layers for entry in layer.entries]
    assert len(entries) > 100
    assert {entry.modified for entry in entries} == {0}
    created = [image.config["created"], *(x["created"] for x in image.config["history"])]
    assert {sbom.moment(x).timestamp() for x in created} == {0}
    assert {entry.owner for entry in entries} <= {(0, 0), (0, 50)}  # root; staff, in base-files


def test_nothing_of_the_build_is_left_in_an_image(image: Image):
    assert [x for x in image.files() if LEFTOVERS.search(x)] == []
    assert image.config["config"]["Env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


def test_there_is_neither_a_shell_nor_what_gives_rights(image: Image):
    files = image.files()
    assert [x for x in files if TOOLS.search(x)] == []
    assert [
        x for x, y in files.items() if y.kind == "0" and y.mode & (stat.S_ISUID | stat.S_ISGID)
    ] == []
    assert [x for x, y in files.items() if y.extended] == []
    assert image.config["config"]["User"] == "2000:2000"


def test_both_images_share_a_layer():
    first = {image_tar.read(x).layers[0].digest for x in images.rouse_tars(print).values()}
    assert len(first) == 1


@pytest.fixture(scope="module")
def root(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a container of the image has for a root."""
    folder = tmp_path_factory.mktemp("root")
    with tarfile.open(tar) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as inner:
                inner.extractall(folder)
    folder.chmod(0o755)
    return folder


def run_inside(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    inside = ["/usr/sbin/chroot", "--userspec=2000:2000", str(root)]
    return subprocess.run([*inside, *command], capture_output=True, text=True, env={}, timeout=30)


def test_a_program_starts_in_a_root_that_holds_its_image_and_nothing_else(name: str, root: Path):
    answer = run_inside(root, f"/{PROGRAMS[name]}", "--version")
    assert answer.returncode == 0, answer.stderr
    assert images.commit() in answer.stdout


def test_each_library_finds_those_that_it_needs(name: str, root: Path, image: Image):
    """UCX and libibverbs open modules at run time, and do without one that does not load."""
    (loader,) = (x for x in image.files() if re.fullmatch(r"lib(64)?/ld-linux-[^/]*", x))
    libraries = [
        x for x, y in image.files().items() if ".so" in x and y.kind == "0" and "/lib" in f"/{x}"
    ]
    libraries = [
        x for x in libraries if (root / x).read_bytes()[:4] == b"\x7fELF" and "/ld-linux-" not in x
    ]
    assert len(libraries) > 20
    assert name == "operator" or any("/ucx/libuct_ib.so" in x for x in libraries)
    for library in libraries:
        answer = run_inside(root, f"/{loader}", "--list", f"/{library}")
        assert (answer.returncode, "not found" in answer.stdout) == (0, False), (library, answer)


def test_an_image_is_as_large_as_its_page_says(name: str, tar: Path):
    row = re.search(
        rf"^\| {name} \| {images.here()} \| (\d+) MB \|", PAGE.read_text(), re.MULTILINE
    )
    assert row, f"{PAGE}: a row for {name}"
    assert tar.stat().st_size / 1e6 == pytest.approx(int(row[1]), rel=0.05)


# ---- the bill of materials


def listed_by_dpkg(tar: Path, image: Image, folder: Path) -> dict[str, str]:
    """By Debian's own program, of the list that is in the image."""
    for each in ("info", "updates"):
        (folder / each).mkdir()
    with open(folder / "status", "w") as status:
        for path in sorted(image.files()):
            if path.startswith(sbom.STATUS) and not path.endswith(".md5sums"):
                text = image_tar.read_file(tar, path).decode().rstrip("\n")
                status.write(text.replace("\n", "\nStatus: install ok installed\n", 1) + "\n\n")
    command = [
        "dpkg-query",
        f"--admindir={folder}",
        "--show",
        "--showformat=${Package} ${Version}\n",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(x.split() for x in answer.stdout.splitlines())


def test_a_bill_names_every_package_of_debian(bill: dict, tar: Path, image: Image, tmp_path: Path):
    named = {
        x["name"]: x["versionInfo"]
        for x in bill["packages"]
        if x["SPDXID"].startswith("SPDXRef-deb-")
    }
    assert named == listed_by_dpkg(tar, image, tmp_path)
    assert {"libc6", "libssl3", "libstdc++6"} <= named.keys()
    for package in bill["packages"][2:]:
        (reference,) = package["externalRefs"]
        assert reference["referenceLocator"].startswith(("pkg:deb/debian/", "pkg:pypi/"))


def test_a_bill_names_what_no_package_brought_with_its_digests(
    bill: dict, name: str, tar: Path, image: Image
):
    files = image.files()
    by_name = {x["fileName"]: x for x in bill["files"]}
    packed = {x for y in sbom.debian_packages(tar) for x in y.files}
    missing = {
        path
        for path, entry in files.items()
        if entry.sha256 and path not in packed and not path.startswith(sbom.STATUS)
    } - {x.removeprefix("./") for x in by_name}
    assert missing == set()
    ours = [PROGRAMS[name]]
    ours += [x for x in files if x.startswith("usr/share/rouse/plugin/") and files[x].sha256]
    assert name == "operator" or len(ours) > 10
    for path in ours:
        sums = {x["algorithm"]: x["checksumValue"] for x in by_name[f"./{path}"]["checksums"]}
        assert sums == {"SHA256": files[path].sha256, "SHA1": files[path].sha1}


def test_a_bill_names_what_is_compiled_in(bill: dict, name: str):
    named = {x["name"] for x in bill["packages"] if x["SPDXID"].startswith("SPDXRef-compiled-in-")}
    assert {"nlohmann-json3-dev", "libcli11-dev"} <= named
    assert ("nvidia-cuda-nvcc" in named) == (name == "agent")


def test_each_licence_that_a_bill_points_to_is_in_the_image(bill: dict, image: Image):
    files = image.files()
    notes = [x["licenseComments"] for x in bill["packages"] if "licenseComments" in x]
    assert len(notes) > 15
    for note in notes:
        path = note.split()[0].strip("/")
        folder, file = path.rsplit("/", 1)
        if files.get(folder) and files[folder].kind == "2":  # a link to another package's
            folder = os.path.normpath(os.path.join(os.path.dirname(folder), files[folder].link))
        assert f"{folder}/{file}" in files, note


def test_the_same_image_has_the_same_bill(bill: dict, tar: Path, tmp_path: Path):
    copy = tmp_path / "copy.tar"
    shutil.copy(tar, copy)
    assert json.loads(sbom.text(copy)) == bill


# ---- what compares two builds


def packed(folder: Path, name: str, files: dict[str, bytes]) -> Image:
    root = folder / name
    root.mkdir()
    for path, content in files.items():
        (root / path).write_bytes(content)
    tar = folder / f"{name}.tar"
    layers = [images.pack.Layer(root)]
    images.pack.pack(tar, "localhost/some:1", layers, images.pack.Config(entrypoint=["/a"]))
    return image_tar.read(tar)


def test_the_first_file_that_differs_is_named(tmp_path: Path):
    one = packed(tmp_path, "one", {"a": b"1", "b": b"2", "c": b"3"})
    assert (
        image_tar.first_difference(one, packed(tmp_path, "same", {"a": b"1", "b": b"2", "c": b"3"}))
        == ""
    )
    other = packed(tmp_path, "other", {"a": b"1", "b": b"!", "c": b"!"})
    assert image_tar.first_difference(one, other) == "layer 1: b: sha1, sha256"
    fewer = packed(tmp_path, "fewer", {"a": b"1", "b": b"2"})
    assert image_tar.first_difference(one, fewer) == "layer 1: only one has c"
