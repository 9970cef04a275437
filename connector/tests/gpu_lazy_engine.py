"""gpu_lazy_engine.py JSON: runs one vLLM engine on a GPU and looks at its CUDA graphs; prints "RESULT {...}".

JSON: as of gpu_engine.py, and {"doing": [...]}, what to do with the engine once it is up, in this order:
  answers: greedy tokens at several batch sizes      busy: the same for one batch, with a capture every other step
  long:    one request of many steps                 half: captures half of the graphs that are left, one by one
  rest:    captures all that are left                sizes: runs batches of every size that has a graph
  starve:  captures when memory has run out          memory: what is in use
The engine core is in this process: capture steps come between its engine steps, as collective_rpc brings them.
"""

import functools
import json
import sys
import time

import gpu_engine
import gpu_graphs

BATCHES = (1, 3, 32, 100)
BUSY_BATCH = 32
LONG_TOKENS = 640


class Engine:
    def __init__(self, request) -> None:
        begun = time.monotonic()
        self._time_capture()
        self.llm = gpu_engine.start(request)
        self.seconds = time.monotonic() - begun
        self.config = self.llm.llm_engine.vllm_config
        self.lazy = request["extra"].get("graphCapture") == "Lazy"
        self.rpc(gpu_graphs.watch)

    def _time_capture(self) -> None:
        """Of this process: 0 where workers are processes of their own."""
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

    def rpc(self, function, *arguments):
        """What the first rank says."""
        return self.llm.collective_rpc(function, args=arguments)[0]

    def status(self):
        from rouse_vllm import capture

        ranks = self.llm.collective_rpc(capture.status)
        counts = [{k: v for k, v in status.items() if k != "heldBytes"} for status in ranks]
        assert all(one == counts[0] for one in counts), f"ranks have other graphs: {counts}"
        return ranks[0]

    def step(self, budget_s: float = 0.0):
        from rouse_vllm import capture

        ranks = self.llm.collective_rpc(capture.step, args=(budget_s,))
        assert all(tuple(one) == tuple(ranks[0]) for one in ranks), f"ranks captured {ranks}"
        return tuple(ranks[0])

    def generate(self, prompts, tokens: int):
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        results = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False
        )
        return [list(result.outputs[0].token_ids) for result in results]

    def graphs(self) -> int:
        counts = [len(look["replays"]) for look in self.llm.collective_rpc(gpu_graphs.look)]
        assert len(set(counts)) == 1, f"ranks have {counts} graphs"
        return counts[0]

    def _without_graph(self, look) -> dict[str, int]:
        """Steps that were given to no graph, by their tokens, where a graph of such a size exists or will."""
        largest = self.config.compilation_config.max_cudagraph_capture_size or 0
        return {str(n): count for n, count in look["withoutGraph"].items() if n <= largest}

    # What can be done.

    def answers(self):
        self.rpc(gpu_graphs.clear)
        begun = time.monotonic()
        first = self.generate(prompts(1), 1)
        first_seconds = time.monotonic() - begun
        tokens = {str(size): self.generate(prompts(size), 16) for size in BATCHES}
        look = self.rpc(gpu_graphs.look)
        return {
            "tokens": {"first": first} | tokens,
            "firstRequestSeconds": round(first_seconds, 3),
            "stepsWithoutGraph": sum(self._without_graph(look).values()),
            "steps": look["steps"],
        }

    def long(self):
        begun = time.monotonic()
        tokens = self.generate(prompts(1), LONG_TOKENS)
        seconds = time.monotonic() - begun
        return {"tokens": tokens, "secondsPerToken": round(seconds / LONG_TOKENS, 5)}

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
        self.rpc(gpu_graphs.take_memory)
        starved = [self.step() for _ in range(3)]
        self.rpc(gpu_graphs.give_memory_back)
        # Small graphs may have found room all the same: one that certainly does not, in mid-capture.
        self.rpc(gpu_graphs.fail_captures)
        injected = self.step()
        self.rpc(gpu_graphs.let_captures_be)
        return {"starved": starved, "injected": injected}

    def sizes(self):
        """Every graph is replayed: FULL ones by as many requests, PIECEWISE ones by a prompt of that length."""
        self.rpc(gpu_graphs.clear)
        most = self.config.scheduler_config.max_num_seqs
        for mode, size in sorted(self.rpc(gpu_graphs.look)["replays"]):
            if mode == "FULL" and size <= most:
                self.generate([[1 + i % 200, 7] for i in range(size)], 3)
            elif mode == "PIECEWISE" and size > 1:  # One token is a decode step.
                self.generate([[3 + i % 200 for i in range(size)]], 1)
        look = self.rpc(gpu_graphs.look)
        replays = {f"{mode} {size}": n for (mode, size), n in sorted(look["replays"].items())}
        never = [name for name, n in replays.items() if n == 0 and name != "PIECEWISE 1"]
        return {
            "replays": replays,
            "neverReplayed": never,
            "withoutGraph": self._without_graph(look),
        }

    def memory(self):
        return self.rpc(gpu_graphs.memory)


def prompts(count: int):
    return [[(7 + 131 * i + 17 * j) % 250 for j in range(24)] for i in range(count)]


def main() -> None:
    request = json.loads(sys.argv[1])
    begun = time.monotonic()
    import torch  # noqa: F401
    import vllm  # noqa: F401

    imported = time.monotonic()
    engine = Engine(request)
    config = engine.config
    result = {
        "importSeconds": round(imported - begun, 2),
        "engineSeconds": round(engine.seconds, 2),
        "captureSeconds": round(engine.capture_seconds, 3),
        "profileGraphsSeconds": round(engine.profile_seconds, 3),
        "kvBlocks": config.cache_config.num_gpu_blocks,
        "v2Runner": bool(config.use_v2_model_runner),
        "mode": config.compilation_config.cudagraph_mode.name,
        "graphsAtStart": engine.graphs(),
        "done": [],
    }
    if engine.lazy:
        result["statusAtStart"] = engine.status()
    for what in request["doing"]:
        did = getattr(engine, what)()
        did["what"] = what
        did["graphs"] = engine.graphs()
        if engine.lazy:
            did["status"] = engine.status()
        result["done"].append(did)
        print("did", what, flush=True)
    print("RESULT " + json.dumps(result), flush=True)
    sys.stdin.read()


if __name__ == "__main__":  # Workers import this file again.
    main()
