#include "agent/options.h"

#include <CLI/CLI.hpp>
#include <map>

#include "agent/cuda/device.h"
#include "agent/cuda/gpus.h"
#include "agent/nccl/nccl_broadcaster.h"
#include "agent/server/clock.h"
#include "common/host_in_url.h"
#include "common/version.h"

namespace rouse::agent {
namespace {

struct Raw {
  std::string path = "Storage";
  std::string files = "Storage";
  std::string fallback = "Storage";
  std::string pod_ip;
  std::string gpu_weights = "Auto";
  std::string nccl_library;
  std::string log_level = "info";
  std::int64_t slab_mib = 1024;
  std::int64_t peer_deadline_s = 120;
  std::int64_t drain_s = 5;
  std::int64_t lease_s = 30;
  std::int64_t pull_stall_s = 10;
  std::string graph_capture = "Eager";
  std::string graph_trigger = "Idle";
  std::int64_t sleep_drain_s = 30;
  std::int64_t sleep_deadline_s = 120;
  std::int64_t wake_deadline_s = 120;
  std::int64_t state_store_mib = 16'384;
  std::int64_t state_deadline_s = 120;
};

void AddPod(CLI::App& app, AgentOptions& agent, Raw& raw) {
  app.add_option(
         "--operator-url", agent.operator_url,
         "Where reports go. https://HOST:7482: with mutual TLS, as peers and the operator then "
         "have to speak too; http://HOST:PORT: everybody is believed; empty: nowhere")
      ->envname("ROUSE_OPERATOR_URL");
  app.add_option("--ca-file", agent.ca_file,
                 "The certificate authorities to trust, PEM; needed with an operator at https")
      ->envname("ROUSE_CA_FILE");
  app.add_option("--token-file", agent.token_file,
                 "A service account token of this pod for audience rouse, for which the operator "
                 "gives a certificate; needed with an operator at https")
      ->envname("ROUSE_TOKEN_FILE");
  app.add_option("--namespace", agent.self.pod_namespace, "Namespace of this pod")
      ->envname("ROUSE_NAMESPACE")
      ->required();
  app.add_option("--pod", agent.self.pod, "Name of this pod")->envname("ROUSE_POD")->required();
  app.add_option("--pod-uid", agent.self.pod_uid, "UID of this pod")->envname("ROUSE_POD_UID");
  app.add_option("--pod-ip", raw.pod_ip, "Address at which peers reach this pod")
      ->envname("ROUSE_POD_IP");
  app.add_option("--node", agent.self.node, "Node of this pod")->envname("ROUSE_NODE");
  app.add_option(
         "--node-folder", agent.publisher.node_folder,
         "A folder that all agents of this node can write to; weights are then copied within "
         "the node directly. Empty: none")
      ->envname("ROUSE_NODE_FOLDER");
  app.add_option("--listen-host", agent.listen_host, "Address to listen on")
      ->envname("ROUSE_LISTEN_HOST")
      ->capture_default_str();
  app.add_option("--port", agent.port,
                 "Port of probes and metrics; without TLS of peers too; 0: any")
      ->envname("ROUSE_PORT")
      ->capture_default_str();
  app.add_option("--tls-port", agent.tls_port, "Port of the operator and peers, with TLS; 0: any")
      ->envname("ROUSE_TLS_PORT")
      ->capture_default_str();
}

void AddStart(CLI::App& app, AgentOptions& agent, Raw& raw) {
  app.add_option("--decided-at-us", agent.plan.decided_at_us,
                 "When the operator decided this start, microseconds since 1970")
      ->envname("ROUSE_DECIDED_AT_US")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--path", raw.path, "How this instance comes to its weights")
      ->envname("ROUSE_PATH")
      ->check(CLI::IsMember({"Storage", "Peer", "Wake"}))
      ->capture_default_str();
  app.add_flag(
         "--begin-without-weights", agent.plan.begin_without,
         "A guard that nobody has weights for: its engine begins with placeholders, and sleeps")
      ->envname("ROUSE_BEGIN_WITHOUT_WEIGHTS");
  app.add_option("--launch-identity", agent.launch_identity,
                 "Only peers of an equal one are pulled from")
      ->envname("ROUSE_LAUNCH_IDENTITY");
  app.add_option("--weights-fallback", raw.fallback,
                 "What an engine does when no peer's weights can be had")
      ->envname("ROUSE_WEIGHTS_FALLBACK")
      ->check(CLI::IsMember({"Storage", "None"}))
      ->capture_default_str();
  app.add_option("--model-dir", agent.model_dir, "The model folder")->envname("ROUSE_MODEL_DIR");
  app.add_option("--model-files", raw.files, "Who fills the model folder")
      ->envname("ROUSE_MODEL_FILES")
      ->check(CLI::IsMember({"Storage", "Peer"}))
      ->capture_default_str();
  app.add_option("--plugin-source", agent.plugin_source, "The plugin as the image has it")
      ->envname("ROUSE_PLUGIN_SOURCE")
      ->capture_default_str();
  app.add_option("--plugin-dir", agent.plugin_dir,
                 "Where to put the plugin for the engine; empty: nowhere")
      ->envname("ROUSE_PLUGIN_DIR");
}

void AddEngine(CLI::App& app, AgentOptions& agent) {
  app.add_option("--engine-socket", agent.engine_socket,
                 "The socket on which the engine's ranks connect")
      ->envname("ROUSE_ENGINE_SOCKET")
      ->required();
  app.add_option("--engine-url", agent.probe.url,
                 "The engine's own port, http://127.0.0.1:8000; empty: none")
      ->envname("ROUSE_ENGINE_URL");
  app.add_option("--served-model", agent.probe.served_model, "The model that the canary asks for")
      ->envname("ROUSE_SERVED_MODEL");
}

void AddTuning(CLI::App& app, ProgramOptions& options, Raw& raw) {
  AgentOptions& agent = options.agent;
  app.add_option("--slab-mib", raw.slab_mib, "Size of one slab of weight memory, MiB")
      ->envname("ROUSE_SLAB_MIB")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option(
         "--gpu-weights", raw.gpu_weights,
         "Auto: with a --node-folder, weights of an engine on a GPU are kept in that GPU's "
         "memory, where it computes with them and agents of this node copy them; agents of "
         "other nodes read them through host memory. Never: in host memory, from which the engine "
         "copies")
      ->envname("ROUSE_GPU_WEIGHTS")
      ->check(CLI::IsMember({"Auto", "Never"}))
      ->capture_default_str();
  app.add_option("--nccl-library", raw.nccl_library,
                 "libnccl.so.2, for weights that go from a GPU to several others of the node at "
                 "once, where that is expected to be faster than pulls. Empty: never")
      ->envname("ROUSE_NCCL_LIBRARY");
  app.add_option("--digest-threads", agent.weights.digest_threads, "Threads that take digests")
      ->envname("ROUSE_DIGEST_THREADS")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--http-threads", agent.http_threads, "Threads that answer HTTP")
      ->envname("ROUSE_HTTP_THREADS")
      ->check(CLI::Range(2, 64))
      ->capture_default_str();
  app.add_option("--peer-deadline-seconds", raw.peer_deadline_s,
                 "How long to look for a peer before the fallback")
      ->envname("ROUSE_PEER_DEADLINE_SECONDS")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  app.add_option("--pull-stall-seconds", raw.pull_stall_s,
                 "How long a pull may go without a byte before the next peer")
      ->envname("ROUSE_PULL_STALL_SECONDS")
      ->check(CLI::Range(1, 3'600))
      ->capture_default_str();
  app.add_option("--lease-seconds", raw.lease_s,
                 "How long a peer may read without renewing its lease")
      ->envname("ROUSE_LEASE_SECONDS")
      ->check(CLI::Range(1, 3'600))
      ->capture_default_str();
  app.add_option("--drain-seconds", raw.drain_s,
                 "How long to wait at the end for peers that still read")
      ->envname("ROUSE_DRAIN_SECONDS")
      ->check(CLI::Range(0, 600))
      ->capture_default_str();
  app.add_option("--log-level", raw.log_level, "debug, info, warn or error")
      ->envname("ROUSE_LOG_LEVEL")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
}

void AddRole(CLI::App& app, Raw& raw) {
  app.add_option("--graph-capture", raw.graph_capture,
                 "Lazy: the engine was told to leave CUDA graphs out at its start")
      ->envname("ROUSE_GRAPH_CAPTURE")
      ->check(CLI::IsMember({"Eager", "Lazy"}))
      ->capture_default_str();
  app.add_option("--graph-capture-trigger", raw.graph_trigger,
                 "With Lazy. Idle: the engine is told to capture them when it has no requests. "
                 "FirstRequest: it does so by itself")
      ->envname("ROUSE_GRAPH_CAPTURE_TRIGGER")
      ->check(CLI::IsMember({"Idle", "FirstRequest"}))
      ->capture_default_str();
  app.add_option("--sleep-drain-seconds", raw.sleep_drain_s,
                 "How long requests under way may take before the engine goes to sleep")
      ->envname("ROUSE_SLEEP_DRAIN_SECONDS")
      ->check(CLI::Range(0, 3'600))
      ->capture_default_str();
  app.add_option("--sleep-deadline-seconds", raw.sleep_deadline_s,
                 "How long going to sleep may take, beside those requests, before the instance has "
                 "failed")
      ->envname("ROUSE_SLEEP_DEADLINE_SECONDS")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  app.add_option("--wake-deadline-seconds", raw.wake_deadline_s,
                 "How long a wake may take before the instance has failed")
      ->envname("ROUSE_WAKE_DEADLINE_SECONDS")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
}

void AddState(CLI::App& app, AgentOptions& agent, Raw& raw) {
  app.add_option("--state-dir", agent.state.folder,
                 "The folder that the engine keeps its compile caches in; empty: they are not "
                 "reused")
      ->envname("ROUSE_STATE_DIR");
  app.add_option("--state-store", agent.state.store.folder,
                 "Where compile caches are kept for peers; all agents of a node may have the same "
                 "folder. Needed with --state-dir")
      ->envname("ROUSE_STATE_STORE");
  app.add_option("--state-store-mib", raw.state_store_mib,
                 "Most that is kept there, MiB; what was used longest ago goes first")
      ->envname("ROUSE_STATE_STORE_MIB")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--engine-identity", agent.state.engine_identity,
                 "Kernels that do not depend on the launch are shared with equal ones")
      ->envname("ROUSE_ENGINE_IDENTITY");
  app.add_option("--state-deadline-seconds", raw.state_deadline_s,
                 "How long another instance that compiles is waited for before the engine starts "
                 "without its caches")
      ->envname("ROUSE_STATE_DEADLINE_SECONDS")
      ->check(CLI::Range(0, 86'400))
      ->capture_default_str();
  app.add_flag("--state-required", agent.state.required,
               "Fail when there are no caches to install, unless no other instance runs")
      ->envname("ROUSE_STATE_REQUIRED");
}

/// What one flag says about another; empty when all fits.
std::string Contradiction(const AgentOptions& agent, const Raw& raw) {
  if (raw.path == "Wake") {
    return "--path Wake: this release starts instances by Storage or Peer only";
  }
  const bool from_peers = raw.path == "Peer" || raw.files == "Peer";
  if (from_peers && agent.operator_url.empty()) {
    return "--operator-url: is needed to learn of peers (--path Peer or --model-files Peer)";
  }
  const bool trusted = agent.operator_url.starts_with("https://");
  if (trusted &&
      (agent.ca_file.empty() || agent.token_file.empty() || agent.self.pod_uid.empty())) {
    return "--ca-file, --token-file and --pod-uid: are needed with an --operator-url of https";
  }
  if (raw.path == "Peer" && agent.launch_identity.empty()) {
    return "--launch-identity: is needed with --path Peer";
  }
  if (raw.files == "Peer" && agent.model_dir.empty()) {
    return "--model-dir: is needed with --model-files Peer";
  }
  if (!agent.probe.url.empty() && agent.probe.served_model.empty()) {
    return "--served-model: is needed for the canary at --engine-url";
  }
  if (!raw.nccl_library.empty() && agent.publisher.node_folder.empty()) {
    return "--node-folder: is needed with --nccl-library";
  }
  if (!agent.state.folder.empty() && agent.state.store.folder.empty()) {
    return "--state-store: is needed with --state-dir";
  }
  return "";
}

std::string Url(const std::string& scheme, const std::string& host, std::uint16_t port) {
  return scheme + "://" + HostInUrl(host) + ":" + std::to_string(port);
}

}  // namespace

std::variant<ProgramOptions, int> ParseOptions(int argc, const char* const* argv) {
  ProgramOptions options;
  AgentOptions& agent = options.agent;
  Raw raw;
  agent.plan.agent_started_us = NowUs();
  CLI::App app("The agent beside one inference engine: owns its weights, gives them to peers.",
               "rouse-agent");
  app.set_version_flag("--version", std::string("rouse-agent ") + kVersion);
  AddPod(app, agent, raw);
  AddStart(app, agent, raw);
  AddEngine(app, agent);
  AddTuning(app, options, raw);
  AddRole(app, raw);
  AddState(app, agent, raw);
  try {
    app.parse(argc, argv);
    if (const std::string wrong = Contradiction(agent, raw); !wrong.empty()) {
      throw CLI::ValidationError(wrong);
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  agent.plan.path = raw.path == "Peer" ? StartPath::kPeer : StartPath::kStorage;
  agent.plan.files_from_peer = raw.files == "Peer";
  agent.plan.fall_back_to_storage = raw.fallback == "Storage";
  const bool trusted = agent.operator_url.starts_with("https://");
  const std::uint16_t port = trusted ? agent.tls_port : agent.port;
  if (!raw.pod_ip.empty() && port != 0) {
    agent.self.address = Url(trusted ? "https" : "http", raw.pod_ip, port);
  }
  // Without a node folder nobody could read them there.
  if (raw.gpu_weights == "Auto" && !agent.publisher.node_folder.empty()) {
    agent.weights.gpus = cuda::Gpus();
    if (!raw.nccl_library.empty()) {
      agent.publisher.broadcasting = nccl::NcclBroadcasting(raw.nccl_library);
    }
  }
  agent.weights.slab_bytes = static_cast<std::uint64_t>(raw.slab_mib) << 20;
  agent.picker.deadline = std::chrono::seconds(raw.peer_deadline_s);
  agent.transfer.digest_threads = agent.weights.digest_threads;
  agent.transfer.progress_deadline = std::chrono::seconds(raw.pull_stall_s);
  agent.publisher.leases.duration = std::chrono::seconds(raw.lease_s);
  agent.publisher.node_socket =
      (agent.self.pod_uid.empty() ? agent.self.pod : agent.self.pod_uid) + ".sock";
  agent.plan.reuse_state = !agent.state.folder.empty();
  agent.state.launch_identity = agent.launch_identity;
  agent.state.pod = agent.self.pod;
  agent.state.decided_at_us = agent.plan.decided_at_us;
  agent.state.store.max_bytes = static_cast<std::uint64_t>(raw.state_store_mib) << 20;
  agent.state.store.owner = agent.self.pod_uid.empty() ? agent.self.pod : agent.self.pod_uid;
  agent.state.limits.deadline = std::chrono::seconds(raw.state_deadline_s);
  agent.state.gpus = cuda::DeviceNames;
  options.drain = std::chrono::seconds(raw.drain_s);
  if (raw.graph_capture == "Lazy") {
    agent.graphs.mode = GraphCaptureMode::kLazy;
    agent.state.startup_plan = false;
  }
  if (raw.graph_trigger == "FirstRequest") {
    agent.graphs.trigger = GraphCaptureTrigger::kFirstRequest;
  }
  agent.role.drain = std::chrono::seconds(raw.sleep_drain_s);
  agent.role.limits.sleep = agent.role.drain + std::chrono::seconds(raw.sleep_deadline_s);
  agent.role.limits.wake = std::chrono::seconds(raw.wake_deadline_s);
  const std::map<std::string, log::Level> levels = {{"trace", log::Level::kDebug},
                                                    {"debug", log::Level::kDebug},
                                                    {"info", log::Level::kInfo},
                                                    {"warn", log::Level::kWarning},
                                                    {"error", log::Level::kError}};
  options.log_level = levels.at(raw.log_level);
  return options;
}

}  // namespace rouse::agent
