"""When a process may fork, when another one has to be spawned, and when an engine is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rouse_vllm import fork
from rouse_vllm.fork import Parent, Request, parent_refusals, request_refusals
from rouse_vllm.launch import RESTART_DELAYS_S, RESTART_WINDOW_S, descendants, restart_delay

#: Stands in for libcuda, after cuInit.
FAKE_INITIALISED_LIBCUDA = """
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
"""


@pytest.mark.parametrize(
    "parent",
    [Parent(), Parent(driver_answer=fork.CUDA_ERROR_NOT_INITIALIZED)],
    ids=["no libcuda", "not initialised"],
)
def test_a_process_without_cuda_and_threads_may_fork(parent: Parent) -> None:
    assert parent_refusals(parent) == []


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        (Parent(torch_uses_cuda=True), "torch has initialised CUDA"),
        (Parent(driver_answer=0), "cuDeviceGetCount answers 0"),
        (Parent(driver_answer=100), "cuDeviceGetCount answers 100"),
        (Parent(threads=("b",)), "other threads: b"),
    ],
)
def test_each_refusal_to_fork_names_its_reason(parent: Parent, reason: str) -> None:
    (said,) = parent_refusals(parent)
    assert reason in said


def test_all_reasons_are_named() -> None:
    assert len(parent_refusals(Parent(True, 0, ("a", "b")))) == 3


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(platform="cpu"),
        Request(
            variables_changed=(
                "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ROUSE_IMPORTED_AT_US", "VLLM_DP_RANK",
            )
        ),
    ],
)  # fmt: skip
def test_what_is_read_late_can_be_set_before_a_fork(request_: Request) -> None:
    assert request_refusals(request_) == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(platform="xpu"), "platform xpu"),
        (Request(ray_actor=True), "Ray"),
        (Request(numa_bind=True), "--numa-bind"),
        (Request(wsl=True), "WSL"),
        # vLLM binds threads of CPU workers by them.
        (
            Request(variables_changed=("OMP_PLACES", "VLLM_X", "OMP_PROC_BIND")),
            "OMP_PLACES, OMP_PROC",
        ),
        (Request(variables_changed=("GOMP_CPU_AFFINITY",)), "GOMP_CPU_AFFINITY"),
        (Request(variables_changed=("TORCHINDUCTOR_FREEZING",)), "TORCHINDUCTOR_FREEZING"),
    ],
)
def test_what_only_a_fresh_process_can_be_is_spawned(request_: Request, reason: str) -> None:
    (said,) = request_refusals(request_)
    assert reason in said


def test_threads_of_this_process_are_seen() -> None:
    done = threading.Event()
    intruder = threading.Thread(target=done.wait, name="intruder")
    intruder.start()
    try:
        assert "intruder" in fork.observe_parent().threads
    finally:
        done.set()
        intruder.join()


def test_the_driver_is_asked_whether_cuda_is_initialised(tmp_path) -> None:
    source = tmp_path / "fake_initialised_libcuda.c"
    source.write_text(FAKE_INITIALISED_LIBCUDA)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    script = "from rouse_vllm import fork; print(fork.driver_answer())"
    answers = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for environment in ({}, {"LD_LIBRARY_PATH": str(tmp_path)})
    ]
    assert answers[1] == "0"
    assert answers[0] in ("None", str(fork.CUDA_ERROR_NOT_INITIALIZED))


#: Forks after parallel work, and does parallel work in the child.
OPENMP_SCRIPT = """
import os, sys, torch
from rouse_vllm import fork
torch.set_num_threads(2)
def work(): torch.randn(2000, 2000).exp().sum()
work()
if sys.argv[1] == "prepared":
    fork.prepare_to_fork()
pid = os.fork()
work()
if pid == 0:
    os._exit(7)
print("worked", flush=True)
assert os.waitpid(pid, 0)[1] == 7 << 8
"""


def test_a_child_may_compute_in_parallel_although_its_parent_did() -> None:
    command = [sys.executable, "-c", OPENMP_SCRIPT]
    subprocess.run([*command, "prepared"], check=True, timeout=120)
    with pytest.raises(subprocess.TimeoutExpired):  # Else this test shows nothing.
        unprepared = subprocess.Popen(
            [*command, "not"], start_new_session=True, stdout=subprocess.PIPE
        )
        try:
            assert unprepared.stdout.readline() == b"worked\n"
            unprepared.wait(timeout=3)
        finally:
            os.killpg(unprepared.pid, 9)
            unprepared.wait()


def test_architectures_are_named_once_and_in_order() -> None:
    assert fork.arch_list([(10, 0), (9, 0), (9, 0), (8, 9)]) == "8.9 9.0 10.0"
    assert fork.arch_list([]) == ""


def test_a_crashed_engine_is_followed_by_another_one_some_times_in_a_while() -> None:
    crashes: list[float] = []
    delays = []
    for i in range(len(RESTART_DELAYS_S) + 1):
        crashes.append(1000.0 + i)
        delays.append(restart_delay(crashes, 1000.0 + i))
    assert delays == [*RESTART_DELAYS_S, None]
    assert delays[0] == 0.0
    # Those of long ago are forgotten.
    late = 1000.0 + RESTART_WINDOW_S + len(crashes)
    assert restart_delay([*crashes, late], late) == 0.0


#: An engine that hears of nothing, as vLLM while it waits for a process that it has started. argv: who
#: asks it to end, "launcher" or "kubelet".
STUCK_SCRIPT = """
import os, signal, sys, time
from rouse_vllm import forkserver, launch
class Once(launch.Launcher):
    def _go_on(self): return False
def engine():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[1] == "kubelet":
        os.kill(os.getppid(), signal.SIGTERM)
    forkserver.CONTEXT.Process(target=os._exit, args=(1,)).start()
    time.sleep(60)
outcome = Once(engine, forkserver.open_channel()).run()
if isinstance(outcome, int):
    os._exit(outcome)
sys.exit(outcome())
"""


@pytest.mark.parametrize("asked_by", ["launcher", "kubelet"])
def test_an_engine_that_goes_on_without_its_process_is_killed(asked_by: str) -> None:
    command = [sys.executable, "-c", STUCK_SCRIPT, asked_by]
    ended = subprocess.run(command, timeout=30, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 128 + signal.SIGKILL, ended.stderr
    assert "goes on without a process" in ended.stderr


def test_descendants_are_found_at_any_depth() -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.DEVNULL)
    try:
        deadline = 200
        while len(found := descendants(child.pid)) == 0 and deadline > 0:
            threading.Event().wait(0.05)
            deadline -= 1
        (grandchild,) = found
        assert {child.pid, grandchild} <= set(descendants(os.getpid()))
    finally:
        for pid in descendants(child.pid):
            os.kill(pid, 9)
        child.wait()
