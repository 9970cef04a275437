#include "operator/plan/engine_env.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "operator/api/names.h"
#include "operator/plan/objects.h"
#include "operator/plan/overlay.h"
#include "operator/plan/render_pod.h"

namespace rouse::plan {
namespace {

// Each engine's caches below the folder that the agent knows, by the names of
// agent/state/cache_class.
constexpr std::pair<const char*, const char*> kCacheFolders[] = {
    {"VLLM_CACHE_ROOT", "vllm"},        {"TORCHINDUCTOR_CACHE_DIR", "inductor"},
    {"TRITON_CACHE_DIR", "triton"},     {"FLASHINFER_WORKSPACE_BASE", "flashinfer"},
    {"TILELANG_CACHE_DIR", "tilelang"}, {"CUTE_DSL_CACHE_DIR", "cute_dsl"},
    {"TVM_FFI_CACHE_DIR", "tvm_ffi"}};

// vLLM 0.26 takes these from HOME and XDG_…, and has them in its key.
constexpr std::pair<const char*, const char*> kFixedFolders[] = {
    {"VLLM_CONFIG_ROOT", ".config/vllm"}, {"VLLM_XLA_CACHE_PATH", ".cache/vllm/xla_cache"}};

// vLLM 0.26: envs.compile_factors(), ignored_factors.
constexpr std::string_view kNotInKey[] = {"VLLM_ASSETS_CACHE",
                                          "VLLM_ASSETS_CACHE_MODEL_CLEAN",
                                          "VLLM_AUDIO_FETCH_TIMEOUT",
                                          "VLLM_CPU_KVCACHE_SPACE",
                                          "VLLM_CPU_MOE_PREPACK",
                                          "VLLM_CUDA_COMPATIBILITY_PATH",
                                          "VLLM_DEBUG_DUMP_PATH",
                                          "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
                                          "VLLM_DO_NOT_TRACK",
                                          "VLLM_DP_MASTER_IP",
                                          "VLLM_DP_MASTER_PORT",
                                          "VLLM_ENABLE_CUDA_COMPATIBILITY",
                                          "VLLM_ENABLE_STARTUP_PLAN",
                                          "VLLM_ENABLE_V1_MULTIPROCESSING",
                                          "VLLM_ENGINE_ITERATION_TIMEOUT_S",
                                          "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
                                          "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
                                          "VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS",
                                          "VLLM_FORCE_AOT_LOAD",
                                          "VLLM_HOST_IP",
                                          "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
                                          "VLLM_IMAGE_FETCH_TIMEOUT",
                                          "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
                                          "VLLM_LOGGING_COLOR",
                                          "VLLM_LOGGING_CONFIG_PATH",
                                          "VLLM_LOGGING_LEVEL",
                                          "VLLM_LOGGING_PREFIX",
                                          "VLLM_LOGGING_STREAM",
                                          "VLLM_LOG_STATS_INTERVAL",
                                          "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB",
                                          "VLLM_MAX_AUDIO_DECODE_DURATION_S",
                                          "VLLM_MAX_AUDIO_PREPROCESS_WORKERS",
                                          "VLLM_MAX_IMAGE_PIXELS",
                                          "VLLM_MEDIA_CACHE",
                                          "VLLM_MEDIA_CACHE_MAX_SIZE_MB",
                                          "VLLM_MEDIA_CACHE_TTL_HOURS",
                                          "VLLM_MEDIA_CONNECTOR",
                                          "VLLM_MEDIA_FETCH_MAX_RETRIES",
                                          "VLLM_MEDIA_LOADING_THREAD_COUNT",
                                          "VLLM_MEDIA_URL_ALLOW_REDIRECTS",
                                          "VLLM_MODEL_REDIRECT_PATH",
                                          "VLLM_NIXL_SIDE_CHANNEL_HOST",
                                          "VLLM_NO_USAGE_STATS",
                                          "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME",
                                          "VLLM_PORT",
                                          "VLLM_RANDOMIZE_DP_DUMMY_INPUTS",
                                          "VLLM_RINGBUFFER_WARNING_INTERVAL",
                                          "VLLM_RPC_BASE_PATH",
                                          "VLLM_SERVER_DEV_MODE",
                                          "VLLM_SKIP_MODEL_NAME_VALIDATION",
                                          "VLLM_TEST_FORCE_LOAD_FORMAT",
                                          "VLLM_TUNED_CONFIG_FOLDER",
                                          "VLLM_USAGE_STATS_SERVER",
                                          "VLLM_USE_MODELSCOPE",
                                          "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE",
                                          "VLLM_VIDEO_FETCH_TIMEOUT",
                                          "VLLM_VIDEO_LOADER_BACKEND",
                                          "VLLM_WORKER_MULTIPROC_METHOD",
                                          "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
                                          "VLLM_ZENTORCH_WEIGHT_PREPACK"};
static_assert(std::is_sorted(std::begin(kNotInKey), std::end(kNotInKey)));

// Of others, those that vLLM or Inductor have in theirs.
constexpr std::string_view kAlsoInKey[] = {"CMAKE_BUILD_TYPE",
                                           "CUDA_HOME",
                                           "CXX",
                                           "MOONCAKE_PREFERRED_SEGMENT",
                                           "MOONCAKE_REQUESTER_LOCAL_HOSTNAME",
                                           "NVCC_THREADS"};

// Of a pod's fields, those that all pods of a ModelService have alike.
constexpr std::string_view kSharedFields[] = {"metadata.namespace", "spec.serviceAccountName"};

std::map<std::string, std::string> OurPaths() {
  std::map<std::string, std::string> out;
  for (const auto& [name, folder] : kCacheFolders) {
    out[name] = std::string(kStateDir) + "/" + folder;
  }
  return out;
}

/// spec.template's part of the engine's environment.
Json TemplateEnv(const Json& pod_template) {
  for (const Json& container : At(At(pod_template, "spec"), "containers")) {
    if (Text(container, "name") != api::kEngineContainer) continue;
    const Json& env = At(container, "env");
    return env.is_array() ? env : Json::array();
  }
  return Json::array();
}

/// Why the variable has another value in every pod; empty when it has not.
std::string WhyPerPod(const Json& entry, const std::set<std::string>& per_pod) {
  const std::string field = Text(At(At(entry, "valueFrom"), "fieldRef"), "fieldPath");
  if (!field.empty() && std::find(std::begin(kSharedFields), std::end(kSharedFields), field) ==
                            std::end(kSharedFields)) {
    return "it is " + field + " of each pod";
  }
  const std::string value = Text(entry, "value");
  for (const std::string& name : per_pod) {
    if (value.find("$(" + name + ")") != std::string::npos) {
      return "it contains $(" + name + "), which each pod has another of";
    }
  }
  return "";
}

}  // namespace

bool IsInCacheKey(std::string_view variable) {
  if (variable.starts_with("TORCHINDUCTOR_")) return variable != "TORCHINDUCTOR_CACHE_DIR";
  if (!variable.starts_with("VLLM_")) {
    return std::find(std::begin(kAlsoInKey), std::end(kAlsoInKey), variable) !=
           std::end(kAlsoInKey);
  }
  return variable != "VLLM_CACHE_ROOT" &&
         !std::binary_search(std::begin(kNotInKey), std::end(kNotInKey), variable);
}

// The same in every pod: nothing here may differ from pod to pod. The user the engine runs as has
// no passwd entry in a stock image, and torch asks for its name.
Json EngineEnv(const api::Spec& spec) {
  Json env = Json::array({Env("PYTHONPATH", kPluginDir), Env("HOME", kHomeDir),
                          Env("USER", "rouse"), Env("LOGNAME", "rouse")});
  if (spec.fast_start.state_reuse) {
    env.push_back(Env("ROUSE_STATE_DIR", kStateDir));  // For the plugin, which vLLM does not ask.
    for (const auto& [name, path] : OurPaths()) env.push_back(Env(name.c_str(), path));
    for (const auto& [name, folder] : kFixedFolders) {
      env.push_back(Env(name, std::string(kHomeDir) + "/" + folder));
    }
  }
  return Overlay({{"env", env}}, {{"env", spec.engine.env}})["env"];
}

std::vector<KeyBreaker> KeyBreakers(const api::Spec& spec) {
  if (!spec.fast_start.state_reuse) return {};
  const Json env =
      Overlay({{"env", EngineEnv(spec)}}, {{"env", TemplateEnv(spec.pod_template)}})["env"];
  const auto ours = OurPaths();
  std::vector<KeyBreaker> found;
  std::set<std::string> per_pod;
  for (const Json& entry : env) {
    const std::string name = Text(entry, "name");
    const std::string why = WhyPerPod(entry, per_pod);
    if (!why.empty()) per_pod.insert(name);
    if (const auto path = ours.find(name); path != ours.end()) {
      if (Text(entry, "value") != path->second) {
        found.push_back({name, "it leads away from " + path->second +
                                   ", where the agent puts and finds caches"});
      }
    } else if (!why.empty() && IsInCacheKey(name)) {
      found.push_back({name, why});
    }
  }
  return found;
}

bool IsEager(const api::Spec& spec) {
  return std::find(spec.engine.args.begin(), spec.engine.args.end(), "--enforce-eager") !=
         spec.engine.args.end();
}

}  // namespace rouse::plan
