"""gpu_engine.py JSON: runs one vLLM engine on a GPU, prints what came of it as one line "RESULT {...}".

JSON: {"model", "loadFormat", "extra", "arguments"}. The engine stays up until its standard input ends. It computes in
this process, so that its memory and its tensors can be looked at.
"""

import json
import sys
import time

PROMPTS = [[(7 + 131 * i + 17 * j) % 250 for j in range(24)] for i in range(16)]


def sleep_and_wake(llm, greedy) -> None:
    """Weights are unmapped and mapped again under captured graphs; prints "AWAKE {...}"."""
    import torch

    from rouse_vllm import loader

    (link,) = loader._open_links
    rounds = []
    for _ in range(3):
        llm.reset_prefix_cache()
        used = torch.cuda.mem_get_info()[0]
        begun = time.monotonic()
        link.unmap_weights()
        asleep = time.monotonic()
        freed = torch.cuda.mem_get_info()[0] - used
        woken = time.monotonic()
        link.map_weights()
        mapped = time.monotonic()
        results = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in PROMPTS], greedy, use_tqdm=False
        )
        rounds.append(
            {
                "unmapSeconds": round(asleep - begun, 4),
                "mapSeconds": round(mapped - woken, 4),
                "freedWhileTheAgentHoldsThem": freed,
                "tokens": [list(result.outputs[0].token_ids) for result in results],
            }
        )
    print("AWAKE " + json.dumps(rounds), flush=True)


def start(request):
    from vllm import LLM

    return LLM(
        model=request["model"],
        load_format=request["loadFormat"],
        model_loader_extra_config=request["extra"],
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **request["arguments"],
    )


def worker_of(llm):
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def main() -> None:
    request = json.loads(sys.argv[1])
    started = time.monotonic()
    import torch
    from vllm import SamplingParams

    imported = time.monotonic()
    llm = start(request)
    ready = time.monotonic()
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    results = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in PROMPTS], greedy, use_tqdm=False
    )
    answered = time.monotonic()
    worker = worker_of(llm)
    model = worker.model_runner.model
    sums = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.data.contiguous().reshape(-1).view(torch.uint8)
        sums[name] = int(data.sum(dtype=torch.int64))
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    print(
        "RESULT "
        + json.dumps(
            {
                "tokens": [list(result.outputs[0].token_ids) for result in results],
                "sums": sums,
                "importSeconds": round(imported - started, 2),
                "engineSeconds": round(ready - imported, 2),
                "generateSeconds": round(answered - ready, 3),
                "weightBytes": sum(p.numel() * p.element_size() for p in model.parameters()),
                "modelMemoryUsage": int(worker.model_runner.model_memory_usage),
                "kvBlocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
                "torchAllocated": torch.cuda.memory_allocated(),
                "torchReserved": torch.cuda.memory_reserved(),
                "gpuUsed": total - free,
            }
        ),
        flush=True,
    )
    for command in sys.stdin:
        if command.strip() == "sleep":
            sleep_and_wake(llm, greedy)


if __name__ == "__main__":
    main()
