#include "operator/plan/render_pod.h"

#include "common/certificates.h"
#include "common/messages.h"
#include "operator/api/launch_identity.h"
#include "operator/api/names.h"
#include "operator/plan/engine_env.h"
#include "operator/plan/model_place.h"
#include "operator/plan/objects.h"
#include "operator/plan/overlay.h"

namespace rouse::plan {
namespace {

constexpr int kUser = 2000;
constexpr char kTokenFile[] = "token";
/// The shortest that Kubernetes gives; the kubelet renews it in time.
constexpr int kTokenSeconds = 600;

// A target that may not fall back gets no checkpoint volume at all: its files come from a peer.
bool HasModelVolume(const api::ModelService& service, const CreateInstance& action) {
  return action.path != StartPath::kPeer ||
         service.spec.fast_start.weights_fallback == api::Fallback::kStorage;
}

Json FieldEnv(const char* name, const char* field) {
  return {{"name", name}, {"valueFrom", {{"fieldRef", {{"fieldPath", field}}}}}};
}

Json Mount(const char* volume, const std::string& path, bool read_only = false) {
  Json mount = {{"name", volume}, {"mountPath", path}};
  if (read_only) mount["readOnly"] = true;
  return mount;
}

Json ModelMount(const api::ModelService& service, const CreateInstance& action, bool read_only) {
  const api::Storage& storage = service.spec.model.storage;
  const ModelPlace place = PlaceOf(storage);
  const bool from_storage = HasModelVolume(service, action);
  Json mount = Mount("model", place.mount, read_only || from_storage);
  if (from_storage && storage.kind == api::Storage::Kind::kPersistentVolumeClaim &&
      !place.source.empty()) {
    mount["subPath"] = place.source;
  }
  return mount;
}

Json ModelVolume(const api::ModelService& service, const CreateInstance& action) {
  const api::Storage& storage = service.spec.model.storage;
  if (!HasModelVolume(service, action)) return {{"name", "model"}, {"emptyDir", Json::object()}};
  if (storage.kind == api::Storage::Kind::kHostPath) {
    return {{"name", "model"},
            {"hostPath", {{"path", PlaceOf(storage).source}, {"type", "Directory"}}}};
  }
  // Read-only at the volume too: the kubelet then leaves the files' owners alone.
  return {{"name", "model"},
          {"persistentVolumeClaim", {{"claimName", storage.claim_name}, {"readOnly", true}}}};
}

Json ContainerSecurity() {
  return {{"allowPrivilegeEscalation", false},
          {"readOnlyRootFilesystem", true},
          {"capabilities", {{"drop", {"ALL"}}}}};
}

Json Probe(const char* path, int period_s, int failures) {
  return {{"httpGet", {{"path", path}, {"port", kAgentPort}}},
          {"periodSeconds", period_s},
          {"timeoutSeconds", 2},
          {"failureThreshold", failures}};
}

// Also one that only the requests name: Kubernetes takes those for the limits then.
bool AsksForGpus(const api::Spec& spec, const PodConfig& config) {
  for (const char* part : {"limits", "requests"}) {
    const auto found = spec.engine.resources.find(part);
    if (found == spec.engine.resources.end() || !found->is_object()) continue;
    for (const std::string& name : config.gpu_resources) {
      const auto count = found->find(name);
      if (count != found->end() && *count != 0 && *count != "0") return true;
    }
  }
  return false;
}

std::string TriggerName(const api::FastStart& fast) {
  return std::string(
      json::NameOf<api::CaptureTrigger>(fast.capture_trigger, api::kCaptureTriggers));
}

Json AgentEnv(const api::ModelService& service, const CreateInstance& action,
              const PodConfig& config) {
  const api::Spec& spec = service.spec;
  const bool files_from_storage = HasModelVolume(service, action);
  Json env = Json::array({
      FieldEnv("ROUSE_NAMESPACE", "metadata.namespace"),
      FieldEnv("ROUSE_POD", "metadata.name"),
      FieldEnv("ROUSE_POD_UID", "metadata.uid"),
      FieldEnv("ROUSE_POD_IP", "status.podIP"),
      FieldEnv("ROUSE_NODE", "spec.nodeName"),
      Env("ROUSE_OPERATOR_URL", config.agent_facing_url),
      Env("ROUSE_PORT", std::to_string(kAgentPort)),
      Env("ROUSE_TLS_PORT", std::to_string(kAgentTlsPort)),
      Env("ROUSE_CA_FILE", std::string(kTrustDir) + "/" + api::kTrustBundleKey),
      Env("ROUSE_TOKEN_FILE", std::string(kTrustDir) + "/" + kTokenFile),
      Env("ROUSE_DECIDED_AT_US", std::to_string(api::ToMicros(action.decided_at))),
      Env("ROUSE_PATH", std::string(ToString(action.path))),
      Env("ROUSE_LAUNCH_IDENTITY", action.launch_identity),
      Env("ROUSE_MODEL_DIR", PlaceOf(spec.model.storage).folder),
      Env("ROUSE_MODEL_FILES", files_from_storage ? "Storage" : "Peer"),
      Env("ROUSE_WEIGHTS_FALLBACK", std::string(json::NameOf<api::Fallback>(
                                        spec.fast_start.weights_fallback, api::kFallbacks))),
      Env("ROUSE_PLUGIN_DIR", kPluginDir),
      Env("ROUSE_ENGINE_SOCKET", kEngineSocket),
      Env("ROUSE_ENGINE_URL", "http://127.0.0.1:" + std::to_string(spec.engine.port)),
      Env("ROUSE_SERVED_MODEL", spec.model.name),
      Env("ROUSE_SLEEP_DRAIN_SECONDS", std::to_string(spec.drain.count())),
      Env("ROUSE_LOG_LEVEL", config.agent_log_level),
  });
  if (action.begins_without) env.push_back(Env("ROUSE_BEGIN_WITHOUT_WEIGHTS", "true"));
  if (!config.agent_node_folder.empty()) env.push_back(Env("ROUSE_NODE_FOLDER", kNodeDir));
  if (spec.fast_start.state_reuse) {
    env.push_back(Env("ROUSE_STATE_DIR", kStateDir));
    env.push_back(Env("ROUSE_STATE_STORE", kStoreDir));
    env.push_back(Env("ROUSE_STATE_STORE_MIB", std::to_string(config.agent_state_mib)));
    env.push_back(Env("ROUSE_ENGINE_IDENTITY", api::EngineIdentity(spec)));
    if (spec.fast_start.state_required) env.push_back(Env("ROUSE_STATE_REQUIRED", "true"));
    // Who compiles nothing has nothing to wait for.
    if (IsEager(spec)) env.push_back(Env("ROUSE_STATE_DEADLINE_SECONDS", "0"));
  }
  if (const api::FastStart& fast = spec.fast_start; fast.capture_mode == api::CaptureMode::kLazy) {
    env.push_back(Env("ROUSE_GRAPH_CAPTURE", "Lazy"));
    env.push_back(Env("ROUSE_GRAPH_CAPTURE_TRIGGER", TriggerName(fast)));
  }
  if (AsksForGpus(spec, config)) {
    // All of the node's: peers' weights lie on other GPUs than the engine's. A claim of its own
    // would take GPUs from engines. What these do is up to the node's NVIDIA runtime.
    env.push_back(Env("NVIDIA_VISIBLE_DEVICES", "all"));
    env.push_back(Env("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"));
  }
  return env;
}

Json Agent(const api::ModelService& service, const CreateInstance& action,
           const PodConfig& config) {
  Json agent = {
      {"name", api::kAgentContainer},
      {"image", config.agent_image},
      {"restartPolicy", "Always"},  // A native sidecar: starts before the engine, ends after it.
      {"env", AgentEnv(service, action, config)},
      {"ports",
       {{{"name", "rouse-agent"}, {"containerPort", kAgentPort}, {"protocol", "TCP"}},
        {{"name", "rouse-peers"}, {"containerPort", kAgentTlsPort}, {"protocol", "TCP"}}}},
      {"startupProbe", Probe("/startupz", 1, static_cast<int>(config.agent_startup.count()))},
      {"readinessProbe", Probe("/readyz", 1, 3)},
      {"livenessProbe", Probe("/healthz", 10, 6)},
      {"resources", config.agent_resources},
      {"securityContext", ContainerSecurity()},
      {"volumeMounts",
       {Mount("rouse-plugin", kPluginDir), Mount("rouse-run", kRunDir),
        ModelMount(service, action, /*read_only=*/false), Mount("dshm", "/dev/shm"),
        Mount("tmp", "/tmp"), Mount("rouse-trust", kTrustDir, true)}}};
  if (!config.agent_image_pull_policy.empty()) {
    agent["imagePullPolicy"] = config.agent_image_pull_policy;
  }
  if (!config.agent_node_folder.empty()) {
    agent["volumeMounts"].push_back(Mount("rouse-node", kNodeDir));
  }
  if (service.spec.fast_start.state_reuse) {
    agent["volumeMounts"].push_back(Mount("rouse-state", kStateDir));
    agent["volumeMounts"].push_back(Mount(api::kStoreVolume, kStoreDir));
  }
  return agent;
}

Json EngineArgs(const api::Spec& spec) {
  Json extra = {{"socket", kEngineSocket}};
  if (spec.fast_start.capture_mode == api::CaptureMode::kLazy) {
    extra["graphCapture"] = "Lazy";
    extra["graphCaptureTrigger"] = TriggerName(spec.fast_start);
  }
  Json args = {PlaceOf(spec.model.storage).folder, "--served-model-name", spec.model.name, "--port",
               std::to_string(spec.engine.port), "--load-format", "rouse",
               "--model-loader-extra-config", json::Canonical(extra),
               // On SIGTERM, which comes when the pod is out of the endpoints.
               "--shutdown-timeout", std::to_string(spec.drain.count())};
  for (const std::string& arg : spec.engine.args) args.push_back(arg);
  return args;
}

Json Engine(const api::ModelService& service, const CreateInstance& action) {
  const api::Engine& engine = service.spec.engine;
  Json container = {
      {"name", api::kEngineContainer},
      {"image", engine.image},
      {"args", EngineArgs(service.spec)},
      {"env", EngineEnv(service.spec)},
      {"ports", {{{"name", "http"}, {"containerPort", engine.port}, {"protocol", "TCP"}}}},
      {"resources", engine.resources},
      {"securityContext", ContainerSecurity()},
      {"volumeMounts",
       {Mount("rouse-plugin", kPluginDir, true), Mount("rouse-run", kRunDir),
        ModelMount(service, action, /*read_only=*/true), Mount("home", kHomeDir),
        Mount("dshm", "/dev/shm"), Mount("tmp", "/tmp")}}};
  // Else the image's own entry point, which is `vllm serve`. Arguments are the same for both.
  if (service.spec.fast_start.process_start == api::ProcessStart::kFork) {
    container["command"] = {"python3", "-m", "rouse_vllm.launch"};
  }
  if (service.spec.fast_start.state_reuse) {
    container["volumeMounts"].push_back(Mount("rouse-state", kStateDir));
  }
  if (!engine.image_pull_policy.empty()) container["imagePullPolicy"] = engine.image_pull_policy;
  return container;
}

// What the agent proves by who it is, and whom it believes. Never the engine's: it runs the user's
// image and the model's code.
Json TrustVolume() {
  const Json token = {
      {"audience", kTokenAudience}, {"expirationSeconds", kTokenSeconds}, {"path", kTokenFile}};
  const Json bundle = {
      {"name", api::kTrustConfigMap},
      {"items", {{{"key", api::kTrustBundleKey}, {"path", api::kTrustBundleKey}}}}};
  return {
      {"name", "rouse-trust"},
      {"projected", {{"sources", {{{"serviceAccountToken", token}}, {{"configMap", bundle}}}}}}};
}

Json Volumes(const api::ModelService& service, const CreateInstance& action,
             const PodConfig& config) {
  const auto empty = [](const char* name) {
    return Json{{"name", name}, {"emptyDir", Json::object()}};
  };
  Json volumes = Json::array(
      {empty("rouse-plugin"), empty("rouse-run"), ModelVolume(service, action), empty("home"),
       Json{{"name", "dshm"}, {"emptyDir", {{"medium", "Memory"}, {"sizeLimit", "1Gi"}}}},
       empty("tmp"), TrustVolume()});
  if (!config.agent_node_folder.empty()) {
    // Where a node lacks it, agents there use the network, and say so.
    volumes.push_back(
        {{"name", "rouse-node"},
         {"hostPath", {{"path", config.agent_node_folder}, {"type", "DirectoryOrCreate"}}}});
  }
  if (service.spec.fast_start.state_reuse) {
    volumes.push_back(empty("rouse-state"));
    volumes.push_back(
        config.agent_state_folder.empty()
            ? empty(api::kStoreVolume)
            : Json{{"name", api::kStoreVolume},
                   {"hostPath",
                    {{"path", config.agent_state_folder}, {"type", "DirectoryOrCreate"}}}});
  }
  return volumes;
}

// Wishes, no conditions: near weights, so that they are pulled from within the node; and guards on
// different nodes, so that one node's end does not take all of them.
Json Affinity(const api::ModelService& service, const CreateInstance& action) {
  Json affinity = Json::object();
  for (const std::string& node : action.near) {
    const Json field = {{"key", "metadata.name"}, {"operator", "In"}, {"values", {node}}};
    affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"].push_back(
        {{"weight", 20}, {"preference", {{"matchFields", {field}}}}});
  }
  if (action.role == Role::kGuard) {
    const Json guards = {{"matchLabels",
                          {{api::kLabelModelService, service.metadata.name},
                           {api::kLabelRole, ToString(Role::kGuard)}}}};
    affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = {
        {{"weight", 100},
         {"podAffinityTerm",
          {{"labelSelector", guards}, {"topologyKey", "kubernetes.io/hostname"}}}}};
  }
  return affinity;
}

Json Spec(const api::ModelService& service, const CreateInstance& action, const PodConfig& config) {
  Json spec = {
      {"restartPolicy", "Always"},
      // Guards are never sent requests, whatever their containers say.
      {"readinessGates", {{{"conditionType", api::kConditionServing}}}},
      {"terminationGracePeriodSeconds", (config.termination_grace + service.spec.drain).count()},
      {"automountServiceAccountToken", false},
      // Service variables would differ from pod to pod, and name things nobody asked for.
      {"enableServiceLinks", false},
      {"securityContext",
       {{"runAsNonRoot", true},
        {"runAsUser", kUser},
        {"runAsGroup", kUser},
        {"fsGroup", kUser},
        {"fsGroupChangePolicy", "OnRootMismatch"},
        {"seccompProfile", {{"type", "RuntimeDefault"}}}}},
      {"initContainers", {Agent(service, action, config)}},
      {"containers", {Engine(service, action)}},
      {"volumes", Volumes(service, action, config)}};
  if (Json affinity = Affinity(service, action); !affinity.empty()) spec["affinity"] = affinity;
  if (!config.gpu_runtime_class.empty() && AsksForGpus(service.spec, config)) {
    spec["runtimeClassName"] = config.gpu_runtime_class;
  }
  for (const std::string& secret : config.image_pull_secrets) {
    spec["imagePullSecrets"].push_back({{"name", secret}});
  }
  return spec;
}

}  // namespace

Json RenderPod(const api::ModelService& service, const CreateInstance& action,
               const PodConfig& config) {
  const api::ObjectMeta& owner = service.metadata;
  Json pod = {
      {"metadata",
       {{"labels",
         {{"app.kubernetes.io/name", owner.name}, {"app.kubernetes.io/managed-by", "rouse"}}},
        {"annotations", {{"kubectl.kubernetes.io/default-container", api::kEngineContainer}}}}},
      {"spec", Spec(service, action, config)}};
  const Json& overlay = service.spec.pod_template;
  Json wanted = Json::object();
  if (overlay.contains("metadata")) {
    for (const char* key : {"labels", "annotations"}) {
      if (overlay["metadata"].contains(key)) wanted["metadata"][key] = overlay["metadata"][key];
    }
  }
  if (overlay.contains("spec")) wanted["spec"] = overlay["spec"];
  pod = Overlay(std::move(pod), wanted);

  pod["apiVersion"] = "v1";
  pod["kind"] = "Pod";
  Json& metadata = pod["metadata"];
  metadata["name"] = action.pod;
  metadata["namespace"] = owner.ns;
  metadata["ownerReferences"] = OwnerReferences(owner);
  metadata["labels"][api::kLabelModelService] = owner.name;
  metadata["labels"][api::kLabelRole] = ToString(action.role);
  metadata["labels"][api::kLabelLaunchIdentity] = action.launch_identity;
  if (action.role == Role::kGuard) metadata["annotations"][api::kAnnotationActivePorts] = "";
  metadata["annotations"][api::kAnnotationPath] = ToString(action.path);
  metadata["annotations"][api::kAnnotationPathReason] = action.path_reason;
  if (action.begins_without) metadata["annotations"][api::kAnnotationBeginsWithout] = "true";
  metadata["annotations"][api::kAnnotationDecidedAtUs] =
      std::to_string(api::ToMicros(action.decided_at));
  metadata["annotations"][api::kAnnotationRevision] = action.revision;
  return pod;
}

}  // namespace rouse::plan
