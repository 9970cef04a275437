"""engine.py JSON: runs one vLLM engine offline as a user's would run, prints its tokens as one line.

JSON: {"model", "loadFormat", "extra", "arguments"}. The plugin comes in through the environment alone. The engine
stays up until its standard input ends, and answers once more for each line that comes there:
so many tokens. zygote.py runs main() without a start of Python.
"""

import json
import os
import sys

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 33]


def main(text: str) -> None:
    request = json.loads(text)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=request["model"],
        load_format=request["loadFormat"],
        model_loader_extra_config=request["extra"],
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=4,
        disable_log_stats=True,
        **request["arguments"],
    )

    def answer(tokens: int) -> None:
        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        (result,) = llm.generate([{"prompt_token_ids": PROMPT}], greedy, use_tqdm=False)
        line = "\nTOKENS " + json.dumps(list(result.outputs[0].token_ids)) + "\n"
        # In one piece, with both ends of the line: the engine's other processes write to the same pipe,
        # and theirs not in one.
        os.write(sys.stdout.fileno(), line.encode())

    answer(24)
    for line in sys.stdin:
        answer(int(line))


if __name__ == "__main__":  # Engine processes import this file again.
    main(sys.argv[1])
