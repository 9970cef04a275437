// The complete pod of one instance. Pure: the same arguments give the same pod, byte for byte.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "operator/api/model_service.h"
#include "operator/plan/action.h"

namespace rouse::plan {

using json::Json;

/// What the operator's flags say about pods.
struct PodConfig {
  std::string agent_image;
  std::string agent_image_pull_policy;  ///< Empty: Kubernetes' own default.
  std::string agent_facing_url;  ///< "https://10.96.0.7:7482", no name: pods may have no DNS.
  Json agent_resources = Json::object();
  std::vector<std::string> image_pull_secrets;
  std::string agent_log_level = "info";
  /// A folder of every node through which the agents of one node find each other; empty: none.
  std::string agent_node_folder;
  /// A folder of every node in which compile caches are kept for all of its pods; empty: each pod
  /// keeps its own.
  std::string agent_state_folder;
  std::int64_t agent_state_mib = 16'384;  ///< Most that is kept there.
  /// What engines ask for GPUs by, "nvidia.com/gpu". An instance whose engine asks for one of them
  /// has an agent that sees all of the node's GPUs and claims none; empty: no agent sees any.
  std::vector<std::string> gpu_resources;
  /// The runtime class of such an instance; empty: none.
  std::string gpu_runtime_class;
  /// The agent's start-up probe gives up after this long, and the kubelet restarts the agent.
  std::chrono::seconds agent_startup{3'600};
  /// For the pod to end once its requests have.
  std::chrono::seconds termination_grace{30};
};

/// Where things are inside a pod (docs/protocols.md §5); the model: model_place.h.
inline constexpr char kPluginDir[] = "/rouse/plugin";
inline constexpr char kRunDir[] = "/rouse/run";
inline constexpr char kNodeDir[] = "/rouse/node";
inline constexpr char kTrustDir[] = "/rouse/trust";
inline constexpr char kStoreDir[] = "/rouse/store";
inline constexpr char kHomeDir[] = "/rouse/home";
inline constexpr char kEngineSocket[] = "/rouse/run/engine.sock";

/// Renders the pod that `action` asks for: agent as native sidecar, engine, volumes, then
/// spec.template laid over it (overlay.h), then what nobody may change: name, owner, and everything
/// under rouse.dev/.
Json RenderPod(const api::ModelService& service, const CreateInstance& action,
               const PodConfig& config);

}  // namespace rouse::plan
