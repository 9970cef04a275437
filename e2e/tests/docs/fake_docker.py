#!/usr/bin/env python3
"""docker, as far as our pages use it, done by buildah: there is no Docker engine where the tests run.

A push goes to a folder of $FAKE_REGISTRY in place of a registry.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rouse_e2e import paths  # noqa: E402
from rouse_e2e.images import Buildah  # noqa: E402


def main(arguments: list[str]) -> int:
    match arguments:
        case ["build", "--target", target, "-t", reference, "."]:
            with paths.locked("buildah"):
                buildah = Buildah()
                buildah.ensure_base(print)
                buildah.build_in_storage(target, reference)
        case ["push", reference]:
            folder = Path(os.environ["FAKE_REGISTRY"], reference.replace("/", "_"))
            with paths.locked("buildah"):
                Buildah().run("push", "--quiet", reference, f"dir:{folder}")
        case _:
            print(f"this docker does not know {arguments}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
