#!/usr/bin/env python3
"""Builds both images twice from nothing, in two clones, and compares them: `make reproduce`.

    reproduce.py [--keep] [FOLDER]

Nothing is shared but this machine: each clone has its own path, base image, layers and compiler cache, which are
empty. Fails with the first thing that differs. What is committed is built. FOLDER (default: a temporary one)
needs 5 GiB for a while, and keeps both builds' images with --keep. In the end says whether the images that
`make demo` and `make test` use are the same, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rouse_e2e import image_tar, images, paths  # noqa: E402

PLACES = ("one", "another/place/with/a/longer/path")


def built(say) -> dict[str, dict]:
    """In this tree, with this environment's cache folder: where they are, and what a registry would say."""
    result = {}
    for name, tar in images.rouse_tars(say).items():
        digest, size = images.Buildah().published(images.rouse_reference(name))
        result[name] = {"tar": str(tar), "digest": digest, "compressed": size}
    return result


def from_nothing(folder: Path, say) -> dict[str, dict]:
    tree, cache = folder / "tree", folder / "cache"
    subprocess.run(["git", "clone", "--quiet", str(paths.REPOSITORY), str(tree)], check=True)
    started = time.monotonic()
    with open(folder / "log", "w") as log:
        result = subprocess.run(
            [sys.executable, str(tree / "e2e" / "reproduce.py"), "--once"],
            env=dict(os.environ, ROUSE_CACHE=str(cache)),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    if result.returncode:
        print("".join((folder / "log").read_text().splitlines(keepends=True)[-40:]), end="")
        raise SystemExit("the build failed")
    say(f"built in {time.monotonic() - started:.0f} s")
    found = json.loads(result.stdout)
    for name, each in found.items():
        tar = shutil.move(each["tar"], folder / f"{name}.tar")
        each["tar"] = str(tar)
        say(
            f"{name}: {each['digest']}, {tar.stat().st_size >> 20} MiB, {each['compressed'] >> 20} compressed"
        )
    shutil.rmtree(cache)
    shutil.rmtree(tree)
    return found


def differences(one: dict[str, dict], other: dict[str, dict]) -> list[str]:
    found = []
    for name in one:
        left, right = (image_tar.read(Path(x[name]["tar"])) for x in (one, other))
        if difference := image_tar.first_difference(left, right):
            found.append(f"{name}: {difference}")
        elif one[name]["digest"] != other[name]["digest"]:
            found.append(f"{name}: the manifest, although the image is the same")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="keep both builds' images in FOLDER")
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(built(lambda text: print(text, file=sys.stderr, flush=True))))
        return 0

    changed = subprocess.run(
        ["git", "-C", str(paths.REPOSITORY), "status", "--porcelain", "--", *images.CONTEXT],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if changed:
        raise SystemExit(f"not committed, and so not built:\n{changed}")

    def say(text: str) -> None:
        print(text, flush=True)

    work = Path(tempfile.mkdtemp(prefix="rouse-reproduce-", dir=arguments.folder))
    try:
        builds = []
        for place in PLACES:
            folder = work / place
            folder.mkdir(parents=True)
            say(f"[{len(builds) + 1}/2] from nothing, in {folder}")
            builds.append(from_nothing(folder, say))
        found = differences(*builds)
        for each in found:
            say(each)
        if not found:
            say("the same images both times")
            used = differences(builds[0], built(say))
            for each in used:
                say(
                    f"not the same as with this machine's caches (packages of an earlier day?): {each}"
                )
            if not used:
                say("and the same as with this machine's caches")
    finally:
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
