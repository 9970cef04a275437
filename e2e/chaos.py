#!/usr/bin/env python3
"""Faults of every kind on a real cluster of two nodes, for as long as is asked: `make chaos ARGS="--minutes 20"`.

Two replicas and a guard, real vLLM on CPU. Processes of instances, operators, nodes and of the control plane are
killed, pods deleted, the second node cut off and lost; meanwhile invariants are looked at twice a second, and
answers are compared. In the end all must be as wanted again, and nothing be left. Prints what it did and saw;
fails if an invariant broke.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rouse_e2e.chaos_faults import OUT_OF_REACH, Faults, Invariants, add_node  # noqa: E402
from rouse_e2e.cluster import interrupt_on_terminate  # noqa: E402
from rouse_e2e.processes import Timeout, wait_until  # noqa: E402
from rouse_e2e.real import RealCluster  # noqa: E402
from rouse_e2e.story import Instance, Story  # noqa: E402

REPLICAS, GUARDS, SURGE = 2, 1, 1
SETTLE_S = 420
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def as_wanted(story: Story) -> bool:
    try:
        pods = {x.name: x for x in story.instances()}
    except OUT_OF_REACH:
        return False
    return (
        len(pods) == REPLICAS + GUARDS
        and sum(x.serves for x in pods.values()) == REPLICAS
        and sum(x.sleeps for x in pods.values()) == GUARDS
    )


def patient_answer(story: Story, instance: Instance) -> list[int]:
    """The way there, by kubelet and API server, may be one of what was killed last."""

    def ask() -> list[int] | None:
        try:
            return story.ask(instance)
        except OUT_OF_REACH:
            return None

    return wait_until(f"an answer of {instance.name}", 60, ask, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 16))
    parser.add_argument("--out", type=Path, help="write what was done and seen here, as JSON")
    options = parser.parse_args()
    interrupt_on_terminate()
    say(f"seed {options.seed}")
    cluster = RealCluster(f"chaos-{options.seed}", say=say)
    try:
        return run(cluster, options)
    except Timeout:
        cluster.collect(Path.cwd())
        raise
    finally:
        cluster.close()


def run(cluster: RealCluster, options: argparse.Namespace) -> int:
    story = Story(cluster, say)
    story.import_images()
    story.provide_checkpoint()
    add_node(story, say)
    story.install("--set", "operator.replicas=2")
    story.apply()
    story.await_serving(1)
    story.guard(GUARDS)
    story.scale(REPLICAS)
    wait_until("two replicas and a guard", SETTLE_S, lambda: as_wanted(story), 0.5)
    answer = story.ask(story.serving()[0])
    faults = Faults(story, say, options.seed)
    # One more than wanted while one is replaced, or by a rollout's surge.
    invariants = Invariants(story, faults, REPLICAS + GUARDS + SURGE + 1, answer)
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < options.minutes * 60:
            time.sleep(faults.random.uniform(3, 20))
            try:
                faults.next()
            except OUT_OF_REACH as error:  # The API server was down, say.
                say(f"not done: {error}")
        say("no more faults")
        wait_until("all to be as wanted again", SETTLE_S, lambda: as_wanted(story), 0.5)
        settled = time.monotonic()
        for instance in story.serving():
            if patient_answer(story, instance) != answer:
                invariants.broken.append(f"{instance.name} answers differently in the end")
    except Timeout:
        print(story.explain(), flush=True)
        raise
    finally:
        invariants.close()
    story.delete()
    wait_until("nothing to be left", 60, lambda: not story.left_behind(), 1)
    summary = {
        "name": "chaos",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["e2e/chaos.py", *sys.argv[1:]]),
        "seed": options.seed,
        "minutes": round((settled - begun) / 60, 1),
        "faults": dict(faults.done),
        "looks": invariants.looks,
        "looksFailed": invariants.failed_looks,
        "answersCompared": invariants.answers,
        "requestsFailed": invariants.failed_asks,
        "longestWithoutAReplicaSeconds": round(invariants.longest_out_s, 1),
        "broken": invariants.broken,
    }
    print(json.dumps(summary, indent=1), flush=True)
    if options.out:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if invariants.broken else 0


if __name__ == "__main__":
    sys.exit(main())
