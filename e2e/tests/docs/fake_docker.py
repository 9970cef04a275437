#!/usr/bin/env python3
"""docker and buildah, as far as our pages use them, done by the real buildah with storage of the tests' own: there
is no Docker engine where the tests run.

A push goes to a folder of $FAKE_REGISTRY in place of a registry.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rouse_e2e import paths  # noqa: E402
from rouse_e2e.images import Buildah, commit  # noqa: E402


def main(program: str, arguments: list[str]) -> int:
    # Without the folder that this program is in: `buildah` is the real one then.
    os.environ["PATH"] = os.environ["PATH"].partition(":")[2]
    match [program, *arguments]:
        case ["docker", "build", "--target", target, "-t", reference, "."]:
            with paths.locked("buildah"):
                buildah = Buildah()
                buildah.ensure_base(print)
                buildah.build_in_storage(target, reference)
        case ["buildah", "build", *options, "."]:
            with paths.locked("buildah"):
                buildah = Buildah()
                buildah.ensure_base(print)
                # Another commit's name would have the programs linked again.
                buildah.bud("--layers", *options, "--build-arg", f"ROUSE_COMMIT={commit()}")
        case [_, "push", reference]:
            folder = Path(os.environ["FAKE_REGISTRY"], reference.replace("/", "_"))
            with paths.locked("buildah"):
                Buildah().run("push", "--quiet", reference, f"dir:{folder}")
        case ["docker", "save", "-o", file, reference]:
            Path(file).unlink(missing_ok=True)
            with paths.locked("buildah"):
                Buildah().run("push", "--quiet", reference, f"docker-archive:{file}:{reference}")
        case _:
            print(f"this {program} does not know {arguments}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
