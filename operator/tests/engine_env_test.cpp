#include <catch2/catch.hpp>

#include "operator/plan/engine_env.h"
#include "operator/plan/render_pod.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;

namespace {

Json FieldRef(const std::string& name, const std::string& field) {
  return {{"name", name}, {"valueFrom", {{"fieldRef", {{"fieldPath", field}}}}}};
}
Json Value(const std::string& name, const std::string& value) {
  return {{"name", name}, {"value", value}};
}

api::Spec SpecWith(std::vector<Json> env, const Json& pod_template = Json::object()) {
  api::Spec spec = Service(1).spec;
  spec.engine.env = Json(std::move(env));
  spec.pod_template = pod_template;
  return spec;
}

std::vector<std::string> Broken(const api::Spec& spec) {
  std::vector<std::string> names;
  for (const KeyBreaker& breaker : KeyBreakers(spec)) names.push_back(breaker.variable);
  return names;
}

std::string ValueOf(const Json& env, const std::string& name) {
  for (const Json& entry : env) {
    if (entry["name"] == name) return entry.value("value", "");
  }
  return "none";
}

Json RenderWith(const api::Spec& spec, const PodConfig& config = {}) {
  api::ModelService service = Service(1);
  service.spec = spec;
  return RenderPod(service,
                   {.pod = "demo-0",
                    .path = StartPath::kStorage,
                    .launch_identity = "identity",
                    .revision = "revision",
                    .decided_at = kNow},
                   config);
}

const Json* Named(const Json& list, const std::string& name) {
  for (const Json& item : list) {
    if (item.value("name", "") == name) return &item;
  }
  return nullptr;
}

}  // namespace

TEST_CASE("every cache of the engine lies where the agent looks, the same in every pod") {
  const Json env = EngineEnv(SpecWith({}));
  CHECK(ValueOf(env, "VLLM_CACHE_ROOT") == "/rouse/state/vllm");
  CHECK(ValueOf(env, "TORCHINDUCTOR_CACHE_DIR") == "/rouse/state/inductor");
  CHECK(ValueOf(env, "TRITON_CACHE_DIR") == "/rouse/state/triton");
  CHECK(ValueOf(env, "ROUSE_STATE_DIR") == "/rouse/state");
  // Of these vLLM has the values in its key, and makes them of HOME unless they are set.
  CHECK(ValueOf(env, "VLLM_CONFIG_ROOT") == "/rouse/home/.config/vllm");
  CHECK(ValueOf(env, "VLLM_XLA_CACHE_PATH") == "/rouse/home/.cache/vllm/xla_cache");
  CHECK(Broken(SpecWith({})).empty());
}

TEST_CASE("agent and engine share the state folder, the store is the agent's alone") {
  const Json pod = RenderWith(SpecWith({}));
  const Json& agent = pod["spec"]["initContainers"][0];
  const Json& engine = pod["spec"]["containers"][0];
  REQUIRE(Named(agent["volumeMounts"], "rouse-state") != nullptr);
  CHECK((*Named(agent["volumeMounts"], "rouse-state"))["mountPath"] == "/rouse/state");
  CHECK((*Named(engine["volumeMounts"], "rouse-state"))["mountPath"] == "/rouse/state");
  CHECK((*Named(agent["volumeMounts"], "rouse-store"))["mountPath"] == "/rouse/store");
  CHECK(Named(engine["volumeMounts"], "rouse-store") == nullptr);
  CHECK(Named(pod["spec"]["volumes"], "rouse-state")->contains("emptyDir"));
  CHECK(Named(pod["spec"]["volumes"], "rouse-store")->contains("emptyDir"));
  CHECK(ValueOf(agent["env"], "ROUSE_STATE_DIR") == "/rouse/state");
  CHECK(ValueOf(agent["env"], "ROUSE_STATE_STORE") == "/rouse/store");
  CHECK(ValueOf(agent["env"], "ROUSE_STATE_STORE_MIB") == "16384");
  CHECK(ValueOf(agent["env"], "ROUSE_ENGINE_IDENTITY").size() == 32);
  CHECK(ValueOf(agent["env"], "ROUSE_STATE_REQUIRED") == "none");
  CHECK(ValueOf(agent["env"], "ROUSE_STATE_DEADLINE_SECONDS") == "none");

  PodConfig config;
  config.agent_state_folder = "/var/lib/rouse";
  config.agent_state_mib = 7;
  const Json on_node = RenderWith(SpecWith({}), config);
  CHECK((*Named(on_node["spec"]["volumes"], "rouse-store"))["hostPath"]["path"] ==
        "/var/lib/rouse");
  CHECK(ValueOf(on_node["spec"]["initContainers"][0]["env"], "ROUSE_STATE_STORE_MIB") == "7");
}

TEST_CASE("an eager engine waits for nobody, and who requires caches says so to the agent") {
  api::Spec spec = SpecWith({});
  spec.engine.args = {"--enforce-eager"};
  spec.fast_start.state_required = true;
  const Json env = RenderWith(spec)["spec"]["initContainers"][0]["env"];
  CHECK(ValueOf(env, "ROUSE_STATE_DEADLINE_SECONDS") == "0");
  CHECK(ValueOf(env, "ROUSE_STATE_REQUIRED") == "true");
}

TEST_CASE("switched off, nothing of it is in the pod") {
  api::Spec spec = SpecWith({FieldRef("VLLM_PLUGINS", "metadata.name")});
  spec.fast_start.state_reuse = false;
  const std::string pod = RenderWith(spec).dump();
  for (const char* text : {"rouse-state", "rouse-store", "ROUSE_STATE", "VLLM_CACHE_ROOT"}) {
    CHECK(pod.find(text) == std::string::npos);
  }
  CHECK(KeyBreakers(spec).empty());
}

TEST_CASE("a variable that differs from pod to pod is named if caches are keyed by it") {
  CHECK(Broken(SpecWith({FieldRef("VLLM_NIXL_SIDE_CHANNEL_PORT", "metadata.uid"),
                         FieldRef("VLLM_NIXL_SIDE_CHANNEL_HOST", "status.podIP"),
                         FieldRef("VLLM_HOST_IP", "status.podIP"),
                         FieldRef("POD_NAME", "metadata.name"), Value("VLLM_LOGGING_LEVEL", "INFO"),
                         FieldRef("VLLM_PROCESS_NAME_PREFIX", "metadata.name")})) ==
        std::vector<std::string>{"VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_PROCESS_NAME_PREFIX"});
  // What all pods have alike is no matter, wherever it comes from.
  CHECK(Broken(SpecWith({FieldRef("VLLM_PLUGINS", "metadata.namespace"),
                         Json{{"name", "VLLM_API_KEY"},
                              {"valueFrom", {{"secretKeyRef", {{"name", "s"}, {"key", "k"}}}}}}}))
            .empty());
  CHECK(KeyBreakers(SpecWith({FieldRef("VLLM_PLUGINS", "metadata.name")}))[0].why ==
        "it is metadata.name of each pod");
}

TEST_CASE("a variable made of one that differs from pod to pod differs too") {
  const auto breakers =
      KeyBreakers(SpecWith({FieldRef("POD", "metadata.name"), Value("MIDDLE", "x-$(POD)"),
                            Value("VLLM_LOOPBACK_IP", "$(MIDDLE)"), Value("VLLM_DP_RANK", "0")}));
  REQUIRE(breakers.size() == 1);
  CHECK(breakers[0].variable == "VLLM_LOOPBACK_IP");
  CHECK(breakers[0].why.find("$(MIDDLE)") != std::string::npos);
}

TEST_CASE("a cache folder of the user's own is named, in the template too") {
  CHECK(Broken(SpecWith({Value("VLLM_CACHE_ROOT", "/mnt/cache")})) ==
        std::vector<std::string>{"VLLM_CACHE_ROOT"});
  CHECK(Broken(SpecWith({Value("VLLM_CACHE_ROOT", "/rouse/state/vllm")})).empty());
  const Json pod_template = Json::parse(R"({"spec": {"containers": [{"name": "engine", "env": [
    {"name": "TRITON_CACHE_DIR", "value": "/tmp/triton"},
    {"name": "VLLM_PLUGINS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]}]}})");
  CHECK(Broken(SpecWith({}, pod_template)) ==
        std::vector<std::string>{"TRITON_CACHE_DIR", "VLLM_PLUGINS"});
}

TEST_CASE("what is in the key, of names of all kinds") {
  for (const char* name : {"VLLM_PLUGINS", "VLLM_DP_RANK", "VLLM_NIXL_SIDE_CHANNEL_PORT",
                           "CUDA_HOME", "TORCHINDUCTOR_MAX_AUTOTUNE", "VLLM_OF_A_LATER_RELEASE"}) {
    INFO(name);
    CHECK(IsInCacheKey(name));
  }
  for (const char* name : {"VLLM_HOST_IP", "VLLM_PORT", "VLLM_CACHE_ROOT", "HOSTNAME", "HOME",
                           "TORCHINDUCTOR_CACHE_DIR", "NVIDIA_VISIBLE_DEVICES"}) {
    INFO(name);
    CHECK_FALSE(IsInCacheKey(name));
  }
}
