"""gpu_lazy_engine.py JSON: runs one vLLM engine on a GPU and looks at its CUDA graphs; prints "RESULT {...}".

JSON: as of gpu_engine.py, and {"doing": [...]}, what to do with the engine once it is up, in this order:
  answers: greedy tokens at several batch sizes      busy: the same for one batch, with a capture every other step
  long:    one request of many steps                 half: captures half of the graphs that are left, one by one
  rest:    captures all that are left                sizes: runs batches of every size that has a graph
  starve:  captures when memory has run out          memory: what is in use
The engine computes in this process: capture steps come between its engine steps, as collective_rpc brings them.
"""

import functools
import gc
import json
import sys
import time
from collections import Counter

import gpu_engine

BATCHES = (1, 3, 32, 100)
BUSY_BATCH = 32
LONG_TOKENS = 640


class Counts:
    """What batches were given to, and what was replayed."""

    def __init__(self) -> None:
        import torch
        from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
        from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

        self.dispatched: Counter[tuple[str, int]] = Counter()
        self.replayed: Counter[int] = Counter()
        counts = self

        replay = torch.cuda.CUDAGraph.replay

        @functools.wraps(replay)
        def counting_replay(graph):
            counts.replayed[id(graph)] += 1
            return replay(graph)

        torch.cuda.CUDAGraph.replay = counting_replay

        v1 = CudagraphDispatcher.dispatch

        @functools.wraps(v1)
        def dispatch(self, *arguments, **named):
            mode, descriptor = v1(self, *arguments, **named)
            counts.dispatched[mode.name, descriptor.num_tokens] += 1
            return mode, descriptor

        CudagraphDispatcher.dispatch = dispatch

        v2 = ModelCudaGraphManager.dispatch

        @functools.wraps(v2)
        def dispatch_v2(self, *arguments, **named):
            descriptor = v2(self, *arguments, **named)
            counts.dispatched[descriptor.cg_mode.name, descriptor.num_tokens] += 1
            return descriptor

        ModelCudaGraphManager.dispatch = dispatch_v2

    def clear(self) -> None:
        self.dispatched.clear()
        self.replayed.clear()


def graphs(runner) -> dict[tuple[str, int], list[int]]:
    """The captured graphs of each mode and size, by id: a PIECEWISE one is as many as it has pieces."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    found: dict[tuple[str, int], list[int]] = {}
    for wrapper in list(CUDAGraphWrapper._all_instances):
        for descriptor, entry in wrapper.concrete_cudagraph_entries.items():
            if entry.cudagraph is not None:
                key = wrapper.runtime_mode.name, descriptor.num_tokens
                found.setdefault(key, []).append(id(entry.cudagraph))
    manager = getattr(runner, "cudagraph_manager", None)
    for descriptor, graph in getattr(manager, "graphs", {}).items():
        found.setdefault(("FULL", descriptor.num_tokens), []).append(id(graph))
    return found


class Engine:
    def __init__(self, request) -> None:
        begun = time.monotonic()
        self._time_capture()
        self.llm = gpu_engine.start(request)
        self.seconds = time.monotonic() - begun
        self.worker = gpu_engine.worker_of(self.llm)
        self.counts = Counts()
        self.lazy = request["extra"].get("graphCapture") == "Lazy"

    def _time_capture(self) -> None:
        from vllm.v1.worker import gpu_model_runner
        from vllm.v1.worker.gpu import model_runner

        self.capture_seconds = 0.0
        self.profile_seconds = 0.0

        def timed(name, original):
            @functools.wraps(original)
            def call(runner, **arguments):
                begun = time.monotonic()
                try:
                    return original(runner, **arguments)
                finally:
                    total = getattr(self, name) + time.monotonic() - begun
                    setattr(self, name, total)

            return call

        for owner in (gpu_model_runner.GPUModelRunner, model_runner.GPUModelRunner):
            owner.capture_model = timed("capture_seconds", owner.capture_model)
            owner.profile_cudagraph_memory = timed(
                "profile_seconds", owner.profile_cudagraph_memory
            )

    def status(self):
        from rouse_vllm import capture

        return self.llm.collective_rpc(capture.status)[0]

    def step(self, budget_s: float = 0.0):
        from rouse_vllm import capture

        return self.llm.collective_rpc(capture.step, args=(budget_s,))[0]

    def generate(self, prompts, tokens: int):
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        results = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False
        )
        return [list(result.outputs[0].token_ids) for result in results]

    def _without_graph(self) -> dict[str, int]:
        """Steps that were given to no graph, by their tokens, where a graph of such a size exists or will."""
        largest = self.llm.llm_engine.vllm_config.compilation_config.max_cudagraph_capture_size
        return {
            str(tokens): n
            for (mode, tokens), n in sorted(self.counts.dispatched.items())
            if mode == "NONE" and tokens <= largest
        }

    # What can be done.

    def answers(self):
        self.counts.clear()
        begun = time.monotonic()
        first = self.generate(prompts(1), 1)
        first_seconds = time.monotonic() - begun
        tokens = {str(size): self.generate(prompts(size), 16) for size in BATCHES}
        return {
            "tokens": {"first": first} | tokens,
            "firstRequestSeconds": round(first_seconds, 3),
            "stepsWithoutGraph": sum(self._without_graph().values()),
            "steps": self.counts.dispatched.total(),
        }

    def long(self):
        begun = time.monotonic()
        tokens = self.generate(prompts(1), LONG_TOKENS)
        return {
            "tokens": tokens,
            "secondsPerToken": round((time.monotonic() - begun) / LONG_TOKENS, 5),
        }

    def busy(self):
        """Graphs are captured while requests are under way."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
        engine = self.llm.llm_engine
        for i, prompt in enumerate(prompts(BUSY_BATCH)):
            engine.add_request(f"busy-{i}", {"prompt_token_ids": prompt}, greedy)
        tokens, captured, steps = {}, 0, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    tokens[output.request_id] = list(output.outputs[0].token_ids)
            steps += 1
            if self.lazy and steps % 2 == 0:
                captured += self.step()[0]
        ordered = [tokens[f"busy-{i}"] for i in range(BUSY_BATCH)]
        return {"tokens": ordered, "captured": captured, "steps": steps}

    def half(self):
        return self._capture(self.status()["left"] // 2, 0.0)

    def rest(self):
        return self._capture(0, 0.5)

    def _capture(self, until_left: int, budget_s: float):
        begun = time.monotonic()
        calls, captured, longest = 0, 0, 0.0
        while self.status()["left"] > until_left:
            before = time.monotonic()
            captured += self.step(budget_s)[0]
            longest = max(longest, time.monotonic() - before)
            calls += 1
        return {
            "calls": calls,
            "captured": captured,
            "seconds": round(time.monotonic() - begun, 3),
            "longestCallSeconds": round(longest, 3),
        }

    def starve(self):
        import torch

        from rouse_vllm import capture_common

        # What the engine holds for this goes too.
        capture_common.graphs_of(self.worker)._held = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        fillers = []
        size = torch.cuda.mem_get_info()[0]
        while size >= 2 << 20:  # The driver gives less in one piece than it says is free.
            try:
                fillers.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
        starved = [self.step() for _ in range(3)]
        fillers.clear()
        torch.cuda.empty_cache()

        def out_of_memory(module, arguments, output):
            if torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError("CUDA out of memory (not really)")

        # Small graphs may have found room all the same: one that certainly does not, in mid-capture.
        hook = self.worker.get_model().register_forward_hook(out_of_memory)
        injected = self.step()
        hook.remove()
        return {"starved": starved, "injected": injected}

    def sizes(self):
        """Every graph is replayed: FULL ones by as many requests, PIECEWISE ones by a prompt of that length."""
        runner = self.worker.model_runner
        self.counts.clear()
        most = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        known = graphs(runner)
        for mode, size in sorted(known):
            if mode == "FULL" and size <= most:
                self.generate([[1 + i % 200, 7] for i in range(size)], 3)
            elif mode == "PIECEWISE" and size > 1:  # One token is a decode step.
                self.generate([[3 + i % 200 for i in range(size)]], 1)
        replays = {
            f"{mode} {size}": min(self.counts.replayed[graph] for graph in ids)
            for (mode, size), ids in sorted(known.items())
        }
        never = [name for name, n in replays.items() if n == 0 and name != "PIECEWISE 1"]
        return {"replays": replays, "neverReplayed": never, "withoutGraph": self._without_graph()}

    def memory(self):
        import torch

        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return {
            "usedBytes": total - free,
            "torchReserved": torch.cuda.memory_reserved(),
            "torchAllocated": torch.cuda.memory_allocated(),
        }


def prompts(count: int):
    return [[(7 + 131 * i + 17 * j) % 250 for j in range(24)] for i in range(count)]


def main() -> None:
    request = json.loads(sys.argv[1])
    begun = time.monotonic()
    import torch  # noqa: F401
    import vllm  # noqa: F401

    imported = time.monotonic()
    engine = Engine(request)
    config = engine.llm.llm_engine.vllm_config
    result = {
        "importSeconds": round(imported - begun, 2),
        "engineSeconds": round(engine.seconds, 2),
        "captureSeconds": round(engine.capture_seconds, 3),
        "profileGraphsSeconds": round(engine.profile_seconds, 3),
        "kvBlocks": config.cache_config.num_gpu_blocks,
        "v2Runner": bool(config.use_v2_model_runner),
        "mode": config.compilation_config.cudagraph_mode.name,
        "graphsAtStart": len(graphs(engine.worker.model_runner)),
        "done": [],
    }
    if engine.lazy:
        result["statusAtStart"] = engine.status()
    for what in request["doing"]:
        did = getattr(engine, what)()
        did["what"] = what
        did["graphs"] = len(graphs(engine.worker.model_runner))
        if engine.lazy:
            did["status"] = engine.status()
        result["done"].append(did)
        print("did", what, flush=True)
    print("RESULT " + json.dumps(result), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
