#!/usr/bin/env python3
"""What others move between two processes' GPU memory, one rival a run: gpu_rivals.py NAME GIB [FROM TO].

FROM and TO are GPUs, 0 and 0 by default. Prints {"label", "how", "GBps": [...], "equal"}; ends with an error
text if the rival is not there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time

DESCRIPTOR = 64 << 20
ROUNDS = 4


def allocate(torch, count: int, fill: bool, gpu: int):
    torch.cuda.set_device(gpu)
    tensor = torch.empty(count, dtype=torch.uint8, device="cuda")
    tensor.random_() if fill else tensor.zero_()
    torch.cuda.synchronize()
    return tensor


def checksum(torch, tensor) -> int:
    return int(tensor.view(torch.int64).sum().item())


def nixl_source(count: int, gpu: int, answers, done) -> None:
    import torch
    from nixl_cu13._api import nixl_agent, nixl_agent_config

    tensor = allocate(torch, count, True, gpu)
    agent = nixl_agent("source", nixl_agent_config(backends=["UCX"], enable_prog_thread=True))
    agent.register_memory([(tensor.data_ptr(), count, gpu, "")], mem_type="VRAM")
    answers.put((agent.get_agent_metadata(), tensor.data_ptr(), checksum(torch, tensor)))
    done.wait()


def nixl(count: int, far_gpu: int, near_gpu: int) -> dict:
    # With no active NVLink UCX else answers a get over cuda_ipc by a slow path.
    os.environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "on")
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    process = context.Process(target=nixl_source, args=(count, far_gpu, answers, done))
    process.start()
    import torch
    from nixl_cu13._api import nixl_agent, nixl_agent_config

    metadata, remote, expected = answers.get(timeout=100)
    tensor = allocate(torch, count, False, near_gpu)
    agent = nixl_agent("target", nixl_agent_config(backends=["UCX"], enable_prog_thread=True))
    name = agent.add_remote_agent(metadata)
    agent.register_memory([(tensor.data_ptr(), count, near_gpu, "")], mem_type="VRAM")
    pieces = [(at, min(DESCRIPTOR, count - at)) for at in range(0, count, DESCRIPTOR)]
    there = [(remote + at, size, far_gpu) for at, size in pieces]
    here = [(tensor.data_ptr() + at, size, near_gpu) for at, size in pieces]
    far = agent.prep_xfer_dlist(name, there, mem_type="VRAM")
    near = agent.prep_xfer_dlist("", here, mem_type="VRAM")
    every = list(range(len(pieces)))
    rates = []
    for _ in range(ROUNDS):
        handle = agent.make_prepped_xfer("READ", near, every, far, every)
        started = time.perf_counter()
        state = agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = agent.check_xfer_state(handle)
        torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - started) / 1e9)
        agent.release_xfer_handle(handle)
        if state == "ERR":
            sys.exit("NIXL: the transfer failed")
    equal = checksum(torch, tensor) == expected
    done.set()
    process.join(10)
    process.kill()
    return {
        "label": "NIXL",
        "how": "NIXL 1.5.1 READ, 64 MiB descriptors",
        "GBps": rates,
        "equal": equal,
    }


def torch_source(count: int, gpu: int, answers, done) -> None:
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    tensor = allocate(torch, count, True, gpu)
    answers.put((reduce_tensor(tensor), checksum(torch, tensor)))
    done.wait()


def torch_ipc(count: int, far_gpu: int, near_gpu: int) -> dict:
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    process = context.Process(target=torch_source, args=(count, far_gpu, answers, done))
    process.start()
    import torch

    (function, arguments), expected = answers.get(timeout=100)
    tensor = allocate(torch, count, False, near_gpu)
    source = function(*arguments)
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        tensor.copy_(source)
        torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - started) / 1e9)
    equal = checksum(torch, tensor) == expected
    del source
    done.set()
    process.join(10)
    process.kill()
    return {
        "label": "torch CUDA IPC",
        "how": "torch CUDA IPC and copy_",
        "GBps": rates,
        "equal": equal,
    }


def mooncake_engine():
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "nvlink_intra", "") != 0:
        sys.exit("Mooncake: nvlink_intra did not start")
    return engine


def mooncake_source(count: int, gpu: int, answers, done) -> None:
    import torch

    tensor, engine = allocate(torch, count, True, gpu), mooncake_engine()
    if engine.register_memory(tensor.data_ptr(), count) != 0:
        sys.exit("Mooncake: the source's memory was not registered")
    session = f"127.0.0.1:{engine.get_rpc_port()}"
    answers.put((session, tensor.data_ptr(), checksum(torch, tensor)))
    done.wait()


def mooncake(count: int, far_gpu: int, near_gpu: int) -> dict:
    from importlib.metadata import version

    os.environ.setdefault("MC_INTRANODE_NVLINK", "1")
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    process = context.Process(
        target=mooncake_source, args=(count, far_gpu, answers, done), daemon=True
    )
    process.start()
    import torch

    session, remote, expected = answers.get(timeout=60)
    tensor, engine = allocate(torch, count, False, near_gpu), mooncake_engine()
    if engine.register_memory(tensor.data_ptr(), count) != 0:
        sys.exit("Mooncake: the target's memory was not registered")
    at = range(0, count, DESCRIPTOR)
    here = [tensor.data_ptr() + x for x in at]
    there = [remote + x for x in at]
    sizes = [min(DESCRIPTOR, count - x) for x in at]
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        failed = engine.batch_transfer_sync_read(session, here, there, sizes)
        torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - started) / 1e9)
        if failed:
            sys.exit(f"Mooncake: the transfer failed: {failed}")
    equal = checksum(torch, tensor) == expected
    done.set()
    process.join(10)
    process.kill()
    release = version("mooncake-transfer-engine-cuda13")
    return {
        "label": "Mooncake",
        "how": f"Mooncake {release} nvlink_intra batch read, 64 MiB pieces",
        "GBps": rates,
        "equal": equal,
    }


def ucx(count: int, far_gpu: int, near_gpu: int) -> dict:
    if (far_gpu, near_gpu) != (0, 0):
        sys.exit("UCX: ucx_perftest takes the first GPU on both sides")

    program = shutil.which("ucx_perftest") or sys.exit("UCX: no ucx_perftest on PATH")
    environment = dict(
        os.environ, UCX_TLS="cuda_copy,cuda_ipc,tcp,sm", UCX_CUDA_IPC_ENABLE_GET_ZCOPY="on"
    )
    common = [program, "-t", "ucp_get", "-m", "cuda", "-s", str(DESCRIPTOR), "-n", "300"]
    server = subprocess.Popen(common, env=environment, stdout=subprocess.DEVNULL)
    time.sleep(3)
    answer = subprocess.run(
        [*common, "127.0.0.1"], env=environment, capture_output=True, text=True, timeout=100
    )
    server.wait(10)
    found = re.findall(r"^Final:\s+\d+\s+(.*)$", answer.stdout, re.M)
    if not found:
        sys.exit(f"UCX: {answer.stderr.strip() or answer.stdout[-500:]}")
    numbers = [float(x) for x in found[-1].split()]
    # latency typical, average, overall; MB/s average, overall; messages/s
    return {
        "label": "UCX cuda_ipc",
        "how": "ucx_perftest ucp_get over cuda_ipc, 64 MiB, over and over",
        "GBps": [numbers[-3] * 1048576 / 1e9],
        "equal": None,
    }


def main() -> None:
    name, gib = sys.argv[1], int(sys.argv[2])
    gpus = [int(x) for x in sys.argv[3:5]] or [0, 0]
    rivals = {"nixl": nixl, "mooncake": mooncake, "torch": torch_ipc, "ucx": ucx}
    measured = rivals[name](gib << 30, *gpus)
    if measured["equal"] is False:
        sys.exit(f"{name}: other bytes arrived")
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
