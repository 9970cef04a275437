#include <catch2/catch.hpp>

#include "operator/plan/instance.h"
#include "operator/plan/overlay.h"
#include "operator/plan/render_pod.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;

namespace {

PodConfig Config() {
  PodConfig config;
  config.agent_image = "rouse-agent:1";
  config.agent_facing_url = "https://10.96.0.7:7482";
  return config;
}

CreateInstance Create(StartPath path) {
  return {.pod = "demo-1",
          .path = path,
          .path_reason = "Wake: no guards",
          .launch_identity = "identity",
          .revision = "revision",
          .decided_at = kNow};
}

Json Render(StartPath path, const Json& pod_template = Json::object(),
            api::Fallback fallback = api::Fallback::kStorage) {
  api::ModelService service = Service(2);
  service.spec.fast_start.weights_fallback = fallback;
  service.spec.pod_template = pod_template;
  return RenderPod(service, Create(path), Config());
}

// The entry of a list with this name (or mount path).
Json Find(const Json& list, const std::string& name, const char* key = "name") {
  REQUIRE(list.is_array());
  for (const Json& item : list) {
    if (item.at(key) == name) return item;
  }
  FAIL("no " << name << " in " << list.dump());
  return {};
}

Json AgentOf(const Json& pod) {
  return Find(pod["spec"]["initContainers"], "agent");
}
Json EngineOf(const Json& pod) {
  return Find(pod["spec"]["containers"], "engine");
}
std::string EnvOf(const Json& container, const std::string& name) {
  return Find(container["env"], name).at("value");
}

}  // namespace

TEST_CASE("a pod belongs to its ModelService and says how it was decided") {
  const Json pod = Render(StartPath::kPeer);
  CHECK(pod["apiVersion"] == "v1");
  CHECK(pod["kind"] == "Pod");
  const Json& meta = pod["metadata"];
  CHECK(meta["name"] == "demo-1");
  CHECK(meta["namespace"] == "default");
  REQUIRE(meta["ownerReferences"].is_array());
  REQUIRE(meta["ownerReferences"].size() == 1);
  CHECK(meta["ownerReferences"][0] == Json{{"apiVersion", "rouse.dev/v1alpha1"},
                                           {"kind", "ModelService"},
                                           {"name", "demo"},
                                           {"uid", "service-uid"},
                                           {"controller", true},
                                           {"blockOwnerDeletion", true}});
  CHECK(meta["labels"]["rouse.dev/modelservice"] == "demo");
  CHECK(meta["labels"]["rouse.dev/role"] == "Active");
  CHECK(meta["labels"]["rouse.dev/launch-identity"] == "identity");
  CHECK(meta["annotations"]["rouse.dev/path"] == "Peer");
  CHECK(meta["annotations"]["rouse.dev/path-reason"] == "Wake: no guards");
  CHECK(meta["annotations"]["rouse.dev/decided-at-us"] == std::to_string(kNowUs));
}

TEST_CASE("what is rendered reads back as the instance that was decided") {
  Json pod = Render(StartPath::kPeer);
  pod["metadata"]["uid"] = "pod-uid";
  const auto instance = InstanceFromPod(pod);
  REQUIRE(instance.ok());
  CHECK(instance->service == "demo");
  CHECK(instance->owner_uid == "service-uid");
  CHECK(instance->role == Role::kActive);
  CHECK(instance->path == StartPath::kPeer);
  CHECK(instance->decided_at == kNow);
  CHECK(instance->launch_identity == "identity");
  CHECK(instance->revision == "revision");
}

TEST_CASE("the agent is a native sidecar with probes, and knows all it needs without DNS") {
  const Json agent = AgentOf(Render(StartPath::kPeer));
  CHECK(agent["image"] == "rouse-agent:1");
  CHECK(agent["restartPolicy"] == "Always");
  CHECK(agent["startupProbe"]["httpGet"] == Json{{"path", "/startupz"}, {"port", 7410}});
  CHECK(agent["startupProbe"]["failureThreshold"] == 3600);
  CHECK(agent["readinessProbe"]["httpGet"]["path"] == "/readyz");
  CHECK(agent["ports"] ==
        Json::parse(R"([{"name": "rouse-agent", "containerPort": 7410, "protocol": "TCP"},
                        {"name": "rouse-peers", "containerPort": 7411, "protocol": "TCP"}])"));
  CHECK(agent["resources"] == Json::object());
  CHECK(EnvOf(agent, "ROUSE_CA_FILE") == "/rouse/trust/ca.crt");
  CHECK(EnvOf(agent, "ROUSE_TOKEN_FILE") == "/rouse/trust/token");
  CHECK(EnvOf(agent, "ROUSE_TLS_PORT") == "7411");
  CHECK(EnvOf(agent, "ROUSE_OPERATOR_URL") == "https://10.96.0.7:7482");
  CHECK(EnvOf(agent, "ROUSE_DECIDED_AT_US") == std::to_string(kNowUs));
  CHECK(EnvOf(agent, "ROUSE_PATH") == "Peer");
  CHECK(EnvOf(agent, "ROUSE_LAUNCH_IDENTITY") == "identity");
  CHECK(EnvOf(agent, "ROUSE_MODEL_DIR") == "/rouse/model");
  CHECK(EnvOf(agent, "ROUSE_PLUGIN_DIR") == "/rouse/plugin");
  CHECK(EnvOf(agent, "ROUSE_ENGINE_SOCKET") == "/rouse/run/engine.sock");
  CHECK(EnvOf(agent, "ROUSE_ENGINE_URL") == "http://127.0.0.1:8000");
  CHECK(EnvOf(agent, "ROUSE_SERVED_MODEL") == "org/model");
  CHECK(EnvOf(agent, "ROUSE_PORT") == "7410");
  CHECK(EnvOf(agent, "ROUSE_WEIGHTS_FALLBACK") == "Storage");
  for (const auto& [name, path] :
       std::map<std::string, std::string>{{"ROUSE_NAMESPACE", "metadata.namespace"},
                                          {"ROUSE_POD", "metadata.name"},
                                          {"ROUSE_POD_UID", "metadata.uid"},
                                          {"ROUSE_POD_IP", "status.podIP"},
                                          {"ROUSE_NODE", "spec.nodeName"}}) {
    CHECK(Find(agent["env"], name)["valueFrom"]["fieldRef"]["fieldPath"] == path);
  }
  for (const char* path : {"/rouse/plugin", "/rouse/run", "/rouse/model", "/tmp", "/dev/shm"}) {
    Find(agent["volumeMounts"], path, "mountPath");
  }
}

TEST_CASE("only with a folder of the node do agents get one, and engines never") {
  const Json without = Render(StartPath::kPeer);
  CHECK(without.dump().find("hostPath") == std::string::npos);
  CHECK(without.dump().find("ROUSE_NODE_FOLDER") == std::string::npos);
  PodConfig config = Config();
  config.agent_node_folder = "/run/rouse";
  const Json pod = RenderPod(Service(2), Create(StartPath::kPeer), config);
  CHECK(EnvOf(AgentOf(pod), "ROUSE_NODE_FOLDER") == "/rouse/node");
  CHECK(Find(AgentOf(pod)["volumeMounts"], "/rouse/node", "mountPath")["name"] == "rouse-node");
  CHECK(Find(pod["spec"]["volumes"], "rouse-node")["hostPath"] ==
        Json{{"path", "/run/rouse"}, {"type", "DirectoryOrCreate"}});
  CHECK(EngineOf(pod).dump().find("/rouse/node") == std::string::npos);
}

TEST_CASE("an engine that asks for GPUs has an agent that sees the node's and claims none") {
  PodConfig config = Config();
  config.gpu_resources = {"example.com/gpu", "nvidia.com/gpu"};
  config.gpu_runtime_class = "nvidia";
  const auto render = [&](const char* resources) {
    api::ModelService service = Service(2);
    service.spec.engine.resources = Json::parse(resources);
    return RenderPod(service, Create(StartPath::kPeer), config);
  };
  for (const char* resources :
       {R"({"limits": {"nvidia.com/gpu": "1"}})", R"({"limits": {"example.com/gpu": 8}})",
        R"({"requests": {"nvidia.com/gpu": 2}})"}) {
    CAPTURE(resources);
    const Json pod = render(resources);
    CHECK(EnvOf(AgentOf(pod), "NVIDIA_VISIBLE_DEVICES") == "all");
    CHECK(EnvOf(AgentOf(pod), "NVIDIA_DRIVER_CAPABILITIES") == "compute,utility");
    CHECK(AgentOf(pod)["resources"] == Json::object());
    CHECK(pod["spec"]["runtimeClassName"] == "nvidia");
    // The device plugin says which GPUs the engine has.
    CHECK(EngineOf(pod).dump().find("NVIDIA_") == std::string::npos);
  }
  for (const char* resources :
       {"{}", R"({"limits": {"cpu": 4}})", R"({"limits": {"nvidia.com/gpu": "0"}})",
        R"({"limits": {"nvidia.com/gpu": 0}})", R"({"limits": {"other.com/gpu": 1}})",
        R"({"limits": []})"}) {
    CAPTURE(resources);
    const Json pod = render(resources);
    CHECK(pod.dump().find("NVIDIA_") == std::string::npos);
    CHECK_FALSE(pod["spec"].contains("runtimeClassName"));
  }
  config.gpu_runtime_class.clear();
  CHECK_FALSE(render(R"({"limits": {"nvidia.com/gpu": 1}})")["spec"].contains("runtimeClassName"));
  config.gpu_resources.clear();
  CHECK(render(R"({"limits": {"nvidia.com/gpu": 1}})").dump().find("NVIDIA_") == std::string::npos);
}

TEST_CASE("the engine is a stock image with Rouse's arguments before the user's") {
  const Json engine = EngineOf(Render(StartPath::kPeer));
  CHECK(engine["image"] == "vllm:1");
  CHECK(engine["args"] == Json{"/rouse/model", "--served-model-name", "org/model", "--port", "8000",
                               "--load-format", "rouse", "--model-loader-extra-config",
                               R"({"socket":"/rouse/run/engine.sock"})", "--shutdown-timeout", "30",
                               "--max-model-len=256"});
  CHECK(EnvOf(engine, "PYTHONPATH") == "/rouse/plugin");
  CHECK(EnvOf(engine, "HOME") == "/rouse/home");
  CHECK(EnvOf(engine, "A") == "1");
  CHECK(engine["resources"]["limits"]["nvidia.com/gpu"] == "1");
  CHECK(engine["ports"][0]["containerPort"] == 8000);
  CHECK(Find(engine["volumeMounts"], "/rouse/model", "mountPath")["readOnly"] == true);
  CHECK(Find(engine["volumeMounts"], "/rouse/home", "mountPath")["name"] == "home");
}

TEST_CASE(
    "the engine is forked from what has imported everything, or started as the image starts it") {
  api::ModelService service = Service(1);
  for (const StartPath path : {StartPath::kStorage, StartPath::kPeer}) {
    service.spec.fast_start.process_start = api::ProcessStart::kFork;
    const Json fork = EngineOf(RenderPod(service, Create(path), Config()));
    CHECK(fork["command"] == Json{"python3", "-m", "rouse_vllm.launch"});
    service.spec.fast_start.process_start = api::ProcessStart::kSpawn;
    const Json spawn = EngineOf(RenderPod(service, Create(path), Config()));
    CHECK_FALSE(spawn.contains("command"));
    CHECK(fork["args"] == spawn["args"]);
    CHECK(fork["env"] == spawn["env"]);
  }
}

TEST_CASE("the engine's container is the same in every pod, since caches are keyed by it") {
  Json a = EngineOf(Render(StartPath::kPeer));
  Json b = EngineOf(Render(StartPath::kStorage));
  CHECK(a["env"] == b["env"]);
  CHECK(a["command"] == b["command"]);
  CHECK(a["args"] == b["args"]);
}

TEST_CASE("pods run without any privilege") {
  const Json pod = Render(StartPath::kStorage);
  const Json& security = pod["spec"]["securityContext"];
  CHECK(security["runAsNonRoot"] == true);
  CHECK(security["runAsUser"] == 2000);
  CHECK(security["seccompProfile"]["type"] == "RuntimeDefault");
  CHECK(pod["spec"]["automountServiceAccountToken"] == false);
  CHECK(pod["spec"]["enableServiceLinks"] == false);
  for (const Json& container : {AgentOf(pod), EngineOf(pod)}) {
    CHECK(container["securityContext"] ==
          Json::parse(R"({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                          "capabilities": {"drop": ["ALL"]}})"));
  }
  CHECK(Find(pod["spec"]["volumes"], "dshm")["emptyDir"] ==
        Json{{"medium", "Memory"}, {"sizeLimit", "1Gi"}});
}

TEST_CASE("the model folder comes from storage, read-only, unless a target may not fall back") {
  for (const StartPath path : {StartPath::kStorage, StartPath::kPeer}) {
    const Json pod = Render(path);
    CHECK(Find(pod["spec"]["volumes"], "model")["persistentVolumeClaim"] ==
          Json{{"claimName", "models"}, {"readOnly", true}});
    const Json mount = Find(AgentOf(pod)["volumeMounts"], "/rouse/model", "mountPath");
    CHECK(mount["subPath"] == "m");
    CHECK(mount["readOnly"] == true);
    CHECK(EnvOf(AgentOf(pod), "ROUSE_MODEL_FILES") == "Storage");
  }
  const Json first = Render(StartPath::kStorage, Json::object(), api::Fallback::kNone);
  CHECK(Find(first["spec"]["volumes"], "model").contains("persistentVolumeClaim"));
  CHECK(EnvOf(AgentOf(first), "ROUSE_WEIGHTS_FALLBACK") == "None");

  const Json target = Render(StartPath::kPeer, Json::object(), api::Fallback::kNone);
  CHECK(Find(target["spec"]["volumes"], "model") ==
        Json{{"name", "model"}, {"emptyDir", Json::object()}});
  const Json agent_mount = Find(AgentOf(target)["volumeMounts"], "/rouse/model", "mountPath");
  CHECK_FALSE(agent_mount.contains("readOnly"));
  CHECK_FALSE(agent_mount.contains("subPath"));
  CHECK(Find(EngineOf(target)["volumeMounts"], "/rouse/model", "mountPath")["readOnly"] == true);
  CHECK(EnvOf(AgentOf(target), "ROUSE_MODEL_FILES") == "Peer");
  CHECK(target.dump().find("\"models\"") == std::string::npos);
}

TEST_CASE("a hostPath is mounted as it is") {
  api::ModelService service = Service(1);
  service.spec.model.storage = {api::Storage::Kind::kHostPath, "", "/srv/model"};
  const Json pod = RenderPod(service, Create(StartPath::kStorage), Config());
  CHECK(Find(pod["spec"]["volumes"], "model")["hostPath"] ==
        Json{{"path", "/srv/model"}, {"type", "Directory"}});
  CHECK_FALSE(Find(EngineOf(pod)["volumeMounts"], "/rouse/model", "mountPath").contains("subPath"));
}

TEST_CASE(
    "of a snapshot in a Hugging Face cache the whole model is mounted, for its files are links") {
  const std::string in_pod = "/rouse/model/models--a--b/snapshots/0f";
  api::ModelService service = Service(1);
  for (const std::string before : {"", "hub/"}) {
    for (const std::string after : {"", "/"}) {
      service.spec.model.storage.path = before + "models--a--b/snapshots/0f" + after;
      const Json pod = RenderPod(service, Create(StartPath::kStorage), Config());
      for (const Json& container : {AgentOf(pod), EngineOf(pod)}) {
        const Json mount =
            Find(container["volumeMounts"], "/rouse/model/models--a--b", "mountPath");
        CHECK(mount["subPath"] == before + "models--a--b");
        CHECK(mount["readOnly"] == true);
      }
      CHECK(EnvOf(AgentOf(pod), "ROUSE_MODEL_DIR") == in_pod);
      CHECK(EngineOf(pod)["args"][0] == in_pod);
    }
  }
  // A target without the volume has its folder at the same place, and may write there.
  service.spec.fast_start.weights_fallback = api::Fallback::kNone;
  const Json target = RenderPod(service, Create(StartPath::kPeer), Config());
  const Json mount =
      Find(AgentOf(target)["volumeMounts"], "/rouse/model/models--a--b", "mountPath");
  CHECK_FALSE(mount.contains("subPath"));
  CHECK_FALSE(mount.contains("readOnly"));
  CHECK(EnvOf(AgentOf(target), "ROUSE_MODEL_DIR") == in_pod);
  CHECK(EngineOf(target)["args"][0] == in_pod);

  service.spec.model.storage = {api::Storage::Kind::kHostPath, "",
                                "/srv/hub/models--a--b/snapshots/0f"};
  CHECK(Find(RenderPod(service, Create(StartPath::kStorage), Config())["spec"]["volumes"],
             "model")["hostPath"]["path"] == "/srv/hub/models--a--b");
  // What only looks like it is a folder like any other.
  for (const std::string path : {"models--a--b/snapshots", "snapshots/0f", "x/snapshots/0f",
                                 "models--a:b/snapshots/0f", "models--a--b/blobs/0f"}) {
    service.spec.model.storage = {api::Storage::Kind::kPersistentVolumeClaim, "models", path};
    const Json pod = RenderPod(service, Create(StartPath::kStorage), Config());
    CHECK(Find(EngineOf(pod)["volumeMounts"], "/rouse/model", "mountPath")["subPath"] == path);
    CHECK(EngineOf(pod)["args"][0] == "/rouse/model");
  }
}

TEST_CASE("the template is laid over the pod, and cannot take it away from us") {
  const Json overlay = Json::parse(R"({
    "metadata": {"name": "other", "labels": {"team": "a", "rouse.dev/role": "Guard"},
                 "annotations": {"rouse.dev/path": "Wake", "note": "x"}},
    "spec": {
      "nodeSelector": {"gpu": "h200"},
      "tolerations": [{"key": "gpu", "operator": "Exists"}],
      "securityContext": {"runAsUser": 1000},
      "containers": [
        {"name": "engine", "env": [{"name": "HOME", "value": "/h"}, {"name": "B", "value": "2"}],
         "resources": {"limits": {"rdma/ib": 1}},
         "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
        {"name": "extra", "image": "extra:1"}],
      "volumes": [{"name": "cache", "emptyDir": {}}]}})");
  const Json pod = Render(StartPath::kPeer, overlay);
  CHECK(pod["metadata"]["name"] == "demo-1");
  CHECK(pod["metadata"]["labels"]["team"] == "a");
  CHECK(pod["metadata"]["labels"]["rouse.dev/role"] == "Active");
  CHECK(pod["metadata"]["annotations"]["rouse.dev/path"] == "Peer");
  CHECK(pod["metadata"]["annotations"]["note"] == "x");
  CHECK(pod["spec"]["nodeSelector"]["gpu"] == "h200");
  CHECK(pod["spec"]["tolerations"].size() == 1);
  CHECK(pod["spec"]["securityContext"]["runAsUser"] == 1000);
  CHECK(pod["spec"]["securityContext"]["runAsNonRoot"] == true);
  const Json engine = EngineOf(pod);
  CHECK(EnvOf(engine, "HOME") == "/h");
  CHECK(EnvOf(engine, "B") == "2");
  CHECK(EnvOf(engine, "PYTHONPATH") == "/rouse/plugin");
  CHECK(engine["resources"]["limits"] == Json{{"nvidia.com/gpu", "1"}, {"rdma/ib", 1}});
  CHECK(Find(engine["volumeMounts"], "/cache", "mountPath")["name"] == "cache");
  Find(engine["volumeMounts"], "/rouse/model", "mountPath");
  CHECK(Find(pod["spec"]["containers"], "extra")["image"] == "extra:1");
  CHECK(Find(pod["spec"]["volumes"], "cache")["emptyDir"] == Json::object());
}

TEST_CASE("overlays merge maps and keyed lists, replace the rest, and remove by null") {
  const auto overlay = [](const char* base, const char* patch) {
    return Overlay(Json::parse(base), Json::parse(patch));
  };
  CHECK(overlay(R"({"a": {"b": 1, "c": 2}})", R"({"a": {"c": 3, "d": 4}})") ==
        Json::parse(R"({"a": {"b": 1, "c": 3, "d": 4}})"));
  CHECK(overlay(R"({"a": 1, "b": 2})", R"({"a": null})") == Json::parse(R"({"b": 2})"));
  CHECK(overlay(R"({"args": ["x", "y"]})", R"({"args": ["z"]})") ==
        Json::parse(R"({"args": ["z"]})"));
  CHECK(overlay(R"({"ports": [{"containerPort": 1, "name": "a"}]})",
                R"({"ports": [{"containerPort": 1, "name": "b"}, {"containerPort": 2}]})") ==
        Json::parse(R"({"ports": [{"containerPort": 1, "name": "b"}, {"containerPort": 2}]})"));
  CHECK(overlay(R"({"tolerations": [{"key": "a", "effect": "NoSchedule"}]})",
                R"({"tolerations": [{"key": "a", "effect": "NoExecute"}]})")["tolerations"]
            .size() == 2);
  CHECK(overlay(R"({"a": "text"})", R"({"a": {"b": 1}})") == Json::parse(R"({"a": {"b": 1}})"));
  CHECK(overlay(R"({"containers": [{"name": "e"}]})",
                R"({"containers": ["nonsense", {"name": "e", "x": 1}]})") ==
        Json::parse(R"({"containers": [{"name": "e", "x": 1}, "nonsense"]})"));
}

TEST_CASE("engine and agent are told of lazy graph capture, and of nothing where it is eager") {
  const Json eager = Render(StartPath::kPeer);
  CHECK(EngineOf(eager).dump().find("graphCapture") == std::string::npos);
  CHECK(AgentOf(eager).dump().find("ROUSE_GRAPH_CAPTURE") == std::string::npos);
  api::ModelService service = Service(2);
  service.spec.fast_start.capture_mode = api::CaptureMode::kLazy;
  service.spec.fast_start.capture_trigger = api::CaptureTrigger::kIdle;
  const Json lazy = RenderPod(service, Create(StartPath::kPeer), Config());
  CHECK(EnvOf(AgentOf(lazy), "ROUSE_GRAPH_CAPTURE") == "Lazy");
  CHECK(EnvOf(AgentOf(lazy), "ROUSE_GRAPH_CAPTURE_TRIGGER") == "Idle");
  CHECK(EngineOf(lazy)["args"].dump().find(
            R"({\"graphCapture\":\"Lazy\",\"graphCaptureTrigger\":\"Idle\",\"socket\")") !=
        std::string::npos);
}

TEST_CASE("a guard is made as a replica is, out of every endpoint, and away from other guards") {
  api::ModelService service = Service(1);
  service.spec.drain = std::chrono::seconds(90);
  CreateInstance action = Create(StartPath::kPeer);
  action.near = {"node-a", "node-b"};
  const Json replica = RenderPod(service, action, Config());
  action.role = Role::kGuard;
  const Json guard = RenderPod(service, action, Config());
  CHECK(guard["metadata"]["labels"]["rouse.dev/role"] == "Guard");
  CHECK(guard["metadata"]["annotations"]["llm-d.ai/active-ports"] == "");
  CHECK_FALSE(replica["metadata"]["annotations"].contains("llm-d.ai/active-ports"));
  action.begins_without = true;
  const Json without = RenderPod(service, action, Config());
  CHECK(without["metadata"]["annotations"]["rouse.dev/begins-without-weights"] == "true");
  CHECK(EnvOf(Find(without["spec"]["initContainers"], "agent"), "ROUSE_BEGIN_WITHOUT_WEIGHTS") ==
        "true");
  CHECK_FALSE(guard["metadata"]["annotations"].contains("rouse.dev/begins-without-weights"));
  for (const Json& pod : {replica, guard}) {
    CHECK(pod["spec"]["readinessGates"] == Json{{{"conditionType", "rouse.dev/serving"}}});
    CHECK(pod["spec"]["terminationGracePeriodSeconds"] == 120);
    const Json& terms =
        pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    REQUIRE(terms.size() == 2);
    CHECK(terms[1]["preference"]["matchFields"][0]["values"] == Json{"node-b"});
  }
  CHECK_FALSE(replica["spec"]["affinity"].contains("podAntiAffinity"));
  const Json& apart = guard["spec"]["affinity"]["podAntiAffinity"]
                           ["preferredDuringSchedulingIgnoredDuringExecution"];
  CHECK(apart[0]["podAffinityTerm"]["labelSelector"]["matchLabels"]["rouse.dev/role"] == "Guard");
}

TEST_CASE("the agent alone has the pod's token, of its own audience, and whom to trust") {
  const Json pod = Render(StartPath::kStorage);
  CHECK(Find(pod["spec"]["volumes"], "rouse-trust") ==
        Json::parse(R"({"name": "rouse-trust", "projected": {"sources": [
          {"serviceAccountToken": {"audience": "rouse", "expirationSeconds": 600, "path": "token"}},
          {"configMap": {"name": "rouse-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}})"));
  const Json mount = Find(AgentOf(pod)["volumeMounts"], "rouse-trust");
  CHECK(mount["mountPath"] == "/rouse/trust");
  CHECK(mount["readOnly"] == true);
  const Json engine = EngineOf(pod);
  for (const Json& other : engine["volumeMounts"]) CHECK(other["name"] != "rouse-trust");
  CHECK(pod["spec"]["automountServiceAccountToken"] == false);
}
