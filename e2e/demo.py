#!/usr/bin/env python3
"""Shows Rouse's main job on a real cluster: `make demo`, or `make demo KEEP=1` to keep the cluster.

A ModelService starts one vLLM from storage. Scaled out, the second instance takes its weights and
files from the first, without the checkpoint's volume, and gives the same answer. Then a guard is
kept, and the next scale-out wakes it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rouse_e2e import paths  # noqa: E402
from rouse_e2e.cluster import Cluster, CurrentCluster, interrupt_on_terminate  # noqa: E402
from rouse_e2e.processes import tail  # noqa: E402
from rouse_e2e.real import RealCluster, nodes_folder, tear_down  # noqa: E402
from rouse_e2e.story import START_SECONDS, SYSTEM, Story, table  # noqa: E402

NAME = "demo"
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def title(number: int, text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}[{number}/7] {text}{plain}", flush=True)


def tell(story: Story) -> None:
    title(1, "Install Rouse with helm and write a checkpoint")
    story.import_images()
    story.install()
    story.provide_checkpoint()

    title(2, "One instance, from storage")
    story.apply()
    first = story.await_serving(1)[0]
    story.ask(first)
    say(f"{first.name} answers {story.service['spec']['model']['name']}: tokens {first.tokens}")

    title(3, "Scale out: the second instance takes its weights from the first")
    story.scale(2)
    instances = story.await_serving(2)
    second = instances[1]
    volumes = [x["name"] for x in second.pod["spec"]["volumes"] if "persistentVolumeClaim" in x]
    say(f"{second.name}: volume claims in its pod: {', '.join(volumes) or 'none'}")

    title(4, "Keep a guard, and scale out once more: it wakes")
    story.guard(1)
    name = f"{story.name}-2"
    story.await_pods(f"{name} to sleep", lambda p: name in p and p[name].sleeps, START_SECONDS)
    story.scale(3)
    woken = story.await_pods(f"{name} to serve", lambda p: p[name].serves, START_SECONDS)[name]
    say(f"{woken.name} serves (path {woken.path}: {woken.annotation('path-reason')})")
    instances.append(woken)

    title(5, "The same prompt to all")
    for instance in instances:
        story.ask(instance)
        say(f"{instance.name}: tokens {instance.tokens}")
    if any(x.tokens != instances[0].tokens or not x.tokens for x in instances):
        raise RuntimeError("the instances answer differently")
    say(f"identical: {len(instances[0].tokens)} greedy tokens")

    title(6, "Where the time went, and where the bytes came from")
    print(table(instances), flush=True)
    print("\n$ kubectl get modelservices")
    print(story.cluster.kubectl("get", "modelservices", "-n", story.namespace), flush=True)


def wind_up(story: Story) -> None:
    title(7, "Scale in, delete, and look for what is left")
    story.scale(1)
    names = [f"{story.name}-{x}" for x in (0, 1, 2)]
    # One of the two becomes the guard.
    story.await_pods(
        "one to serve and one to sleep",
        lambda p: (
            len(p) == 2 and p[names[0]].serves and any(p[x].sleeps for x in names[1:] if x in p)
        ),
        START_SECONDS,
    )
    story.delete()
    deadline = time.monotonic() + 20  # the kubelet removes volumes a moment after the pod
    while (left := story.left_behind()) and time.monotonic() < deadline:
        time.sleep(0.5)
    if left:
        raise RuntimeError("left behind: " + "; ".join(left))
    say("nothing is left: no pod, no process, no shared memory")
    story.uninstall()


def explain_failure(cluster: Cluster, story: Story | None, error: BaseException) -> None:
    folder = paths.REPOSITORY / "build" / "demo-failure"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        cluster.collect(folder)
        if story:
            print(f"\n{story.explain()}")
        if isinstance(cluster, RealCluster):
            print(f"---- kubelet\n{tail(cluster.state / 'kubelet.log', 10)}")
    except Exception as problem:
        print(f"(collecting logs failed: {problem})")
    print(f"\nFAILED: {error}\nAll logs: {folder}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument(
        "--kubeconfig", action="store_true", help="use the current kubeconfig's cluster"
    )
    arguments = parser.parse_args()
    interrupt_on_terminate()
    if not arguments.kubeconfig and (nodes_folder() / NAME).exists():
        say("taking down the cluster of an earlier demo")
        tear_down(nodes_folder() / NAME)
    print("Rouse: a model that already runs somewhere is a model that can be running here, soon.")
    say("bringing up a one-node cluster" if not arguments.kubeconfig else "using your cluster")
    cluster: Cluster = (
        CurrentCluster() if arguments.kubeconfig else RealCluster(NAME, arguments.keep, say)
    )
    story = None
    try:
        story = Story(cluster, say)
        tell(story)
        if arguments.keep:
            print(f"\nThe cluster stays up. To reach it:\n  export KUBECONFIG={cluster.kubeconfig}")
            print(f"  export PATH={paths.tools()}:$PATH\n  kubectl get rms,pods -o wide")
            print(f"  kubectl logs -n {SYSTEM} deploy/rouse-operator")
            print(f"To take it down:\n  cd e2e && {sys.executable} -m rouse_e2e down {NAME}")
            return 0
        wind_up(story)
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        return 130
    except Exception as error:
        explain_failure(cluster, story, error)
        return 1
    finally:
        if not arguments.keep:
            cluster.close()
            if not arguments.kubeconfig:
                say("the cluster is down")
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
