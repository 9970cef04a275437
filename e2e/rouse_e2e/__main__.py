"""python -m rouse_e2e ACTION [NAME] ...

up          bring up a real one-node cluster that outlives this command (default name: demo)
down        take it down; nothing of it is left
exec        run a command on the node, in its namespaces (kubectl, ctr, curl to a pod, ...)
kubeconfig  print the path of the kubeconfig that reaches it from the machine
list        print the clusters there are
sweep       remove what killed runs have left
images      build all container images into the cache folder
cross ARCH  build Rouse's images for another architecture (default: arm64), and say what a registry would
sbom        write the bills of materials of Rouse's images, in SPDX, into build/sbom
packages    print the folder of the engine image's Python packages
"""

from __future__ import annotations

import os
import sys
import time

from . import images, paths
from .cluster import interrupt_on_terminate
from .real import RealCluster, nodes_folder, sweep, tear_down


def main() -> None:
    arguments = sys.argv[1:]
    action = arguments[0] if arguments else "help"
    name = arguments[1] if len(arguments) > 1 else "demo"
    if "/" in name or name.startswith((".", "-")):
        raise SystemExit(f"{name!r} is no name of a cluster\n{__doc__}")
    interrupt_on_terminate()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    if action == "up":
        cluster = RealCluster(name, keep=True, say=say)
        for tar in images.rouse_tars(say).values():
            cluster.import_image(tar)
        say(f"up; export KUBECONFIG={cluster.kubeconfig}")
    elif action == "down":
        if not (nodes_folder() / name).exists():
            raise SystemExit(f"no cluster {name} in {nodes_folder()}")
        tear_down(nodes_folder() / name)
        say("down")
    elif action == "exec" and len(arguments) > 2:
        command = RealCluster.existing(name).inside(*arguments[2:])
        os.execvp(command[0], command)
    elif action == "kubeconfig":
        print(RealCluster.existing(name).kubeconfig)
    elif action == "list":
        for state in sorted(nodes_folder().glob("*")):
            print(state.name, "ready" if (state / "ready").exists() else "not ready")
    elif action == "images":
        images.pause_tar()
        images.containerd_template(say)
        for name, tar in images.rouse_tars(say).items():
            say(f"{name}: {tar}")
    elif action == "cross":
        architecture = arguments[1] if len(arguments) > 1 else "arm64"
        with paths.locked("buildah"):
            buildah = images.Buildah()
            buildah.ensure_base(say)
            for target in ("operator", "agent"):
                reference = f"localhost/rouse-{target}:{architecture}"
                buildah.build_in_storage(target, reference, architecture)
                digest, size = buildah.published(reference)
                say(f"{reference}: {digest}, {size / 1e6:.1f} MB compressed")
    elif action == "sbom":
        from . import sbom  # takes a second, which nothing else needs

        folder = paths.REPOSITORY / "build" / "sbom"
        folder.mkdir(parents=True, exist_ok=True)
        for name, tar in images.rouse_tars(say).items():
            file = folder / f"rouse-{name}.spdx.json"
            file.write_text(sbom.text(tar))
            print(file)
    elif action == "packages":
        print(images.engine_packages())
    elif action == "sweep":
        sweep()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
