"""The rows of the table, by the names that samples and figures know them by."""

VLLM_COLD = "vLLM as shipped, cold caches"
VLLM_WARM = "vLLM as shipped, warm caches"
#: vLLM told by hand what the plugin tells it (rouse_vllm/whole_artifact.py); of one run.
VLLM_WHOLE_COLD = "vLLM with VLLM_USE_MEGA_AOT_ARTIFACT=1, cold caches"
VLLM_WHOLE_WARM = "vLLM with VLLM_USE_MEGA_AOT_ARTIFACT=1, warm caches"
#: ModelExpress' starts (model_express.py).
MODELEXPRESS_FIRST = "ModelExpress, first instance: storage, cold caches"
MODELEXPRESS = "ModelExpress, weights and caches from its first instance"
FIRST = "Rouse, first instance: storage read by the agent, cold caches"
STORAGE = "Rouse, first instance: storage read by the agent, warm caches"
PEER = "peer weights"
SHARED = "peer weights, caches on a volume shared with the first instance (tmpfs)"
STATE = "+ state reuse"
LAZY = "+ lazy capture"
FORK = "+ fork"
PRELOADED = "+ preloaded parent"
KILLED = "engine killed to serving again"
GUARD = "guard's start"  # no row of its own
WAKE = "guard wake to first token"
VLLM_SLEEP = "vLLM's sleep level 2, wake, reload from tmpfs"
