// The agent: the parts of this pod's sidecar, wired together.
//
// The pure machine (agent/startup/machine.h) decides what state this is; the parts report to it
// what has happened, and everything that follows (the report to the operator, /startupz, metrics)
// is read from it.
//
// Threads: "engine-socket", "role" and "wake-pull" (role_driver.h), "report", "engine-probe",
// "hydrate", "pull" and "pull-rank" (end when done), "state" (state_reuse.h), "keeper"
// (state_keeper.h), "weights" (digests), "storage" (the checkpoint), "xid", "certificate", UCX's,
// and those of HTTP clients and servers. One lock guards the machine.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agent/engine/host.h"
#include "agent/engine/server.h"
#include "agent/nvml/xid_watch.h"
#include "agent/server/canary.h"
#include "agent/server/checkpoint_stream.h"
#include "agent/server/commands.h"
#include "agent/server/engine_probe.h"
#include "agent/server/graph_capture.h"
#include "agent/server/metrics.h"
#include "agent/server/peer_pull.h"
#include "agent/server/reporter.h"
#include "agent/server/role_driver.h"
#include "agent/server/state_reuse.h"
#include "agent/server/weights.h"
#include "agent/startup/machine.h"
#include "agent/startup/report.h"
#include "agent/state/model_files.h"
#include "agent/trust/access.h"
#include "agent/trust/certifier.h"
#include "common/http.h"
#include "common/result.h"

namespace rouse::agent {

struct AgentOptions {
  AgentIdentity self;  ///< `address` may be empty when the port is 0: 127.0.0.1 then.
  std::string operator_url;
  /// With an operator at https: how this pod proves who it is, and whom it trusts.
  std::string ca_file;
  std::string token_file;
  std::string listen_host = "0.0.0.0";
  std::uint16_t port = kAgentPort;         ///< 0: any.
  std::uint16_t tls_port = kAgentTlsPort;  ///< 0: any. Used with an operator at https.
  int http_threads = 4;
  StartPlan plan;
  std::string launch_identity;
  std::string model_dir;
  std::string plugin_source = "/usr/share/rouse/plugin";
  std::string plugin_dir;  ///< Empty: the plugin is not copied.
  std::string engine_socket;
  EngineProbeSettings probe;
  RoleSettings role;
  GraphCaptureSettings graphs;
  WeightStoreOptions weights;
  transfer::PublisherOptions publisher;
  PeerPickerLimits picker;
  transfer::PullOptions transfer;
  StateReuseOptions state;
};

class Agent final : private EngineHost {
 public:
  /// Fails when the agent could not even tell anybody: no UCX, no port, an operator URL that is
  /// none. What else goes wrong is reported as state Failed.
  static Result<std::unique_ptr<Agent>> Start(AgentOptions options);
  /// Ends everything: leases at peers are closed, the socket is unlinked, slabs are freed.
  ~Agent() override;

  /// Offers nothing more to peers, and waits until those that read have finished and the compile
  /// caches that it holds have their copies elsewhere, at most `longest`.
  void Drain(std::chrono::milliseconds longest);

  std::uint16_t port() const { return http_->port(); }

 private:
  explicit Agent(AgentOptions options);
  Status Wire();
  Status WireHttp();
  Status WireReporter();
  Status WireEngine();
  Result<std::unique_ptr<http::Client>> ToOperator() const;
  Result<std::unique_ptr<http::Client>> ToPeer(const Peer& peer) const;
  void Apply(const Event& happened);
  Standing StandingNow() const;  ///< Requires mutex_.
  void Show();                   ///< Requires mutex_. Logs and keeps what has changed.
  void RestoreTimeline();
  void KeepTimeline(const std::optional<Timeline>& timeline);
  void NotifyWork();     ///< There may be digests to take.
  void NotifyWeights();  ///< The weights have changed: everybody looks again. Not for the engine's
                         ///< thread.

  // Threads of their own.
  void Hydrate(const std::stop_token& stop);
  void Pull(const std::stop_token& stop);
  PeerPullSettings PullSettings() const;
  PeerPullHooks PullHooks(std::function<void(const Peer&)> on_opened);
  bool EngineGoesOn() const;
  void PrepareWeights(const std::stop_token& stop);
  Status HydrateFromPeers(const std::stop_token& stop);
  void CheckTransport(const std::string& transport);

  // Sleep and wake (role_host.cpp).
  void WireRole();
  Status WireGraphs();
  Status ReadyToSleep() const;
  Status PullToWake(const std::vector<Peer>& peers, const std::stop_token& stop);
  void RecordCanary();
  CanaryResult AskCanary();
  void KeepRole();
  Status KeepUnfit(bool unfit);
  void FallAsleepWithoutWeights();
  void OnServing(bool anew);
  void OnLoad(const Result<EngineLoad>& load);
  http::Response HandleRole(const std::string& body);

  // Compile caches (state_host.cpp).
  void WireState();
  void BeginState();
  void OnStateSettled(const Status& may_start, std::int64_t began_us);
  http::Response HandleState(const http::Request& request, const std::string& what);

  // HTTP (routes.cpp).
  http::Response Handle(Port port, const http::Request& request);
  http::Response HandleProbe(const std::string& path);
  http::Response HandleMetrics();
  http::Response HandleWeights(const std::string& action, const http::Request& asked);
  http::Response HandleOpen(const http::Request& asked);
  http::Response HandleFiles(const std::string& digest);

  // EngineHost.
  WeightOffer Offer(std::uint32_t rank) override;
  void OnRankConnected(const HelloRequest& hello, WeightsFrom from) override;
  void OnRankDisconnected(std::uint32_t rank) override;
  void OnRefused(const HelloRequest& hello, const std::string& reason) override;
  void OnPhase(std::uint32_t rank, const PhaseRequest& phase) override;
  void OnAnswered(std::string_view type, bool ok) override;
  void OnCacheUse(const CacheUseRequest& use) override;
  Result<std::optional<ReadyWeights>> Weights(std::uint32_t rank) override;
  std::uint64_t HeldOn(const std::string& gpu) override;
  Result<ArenaShape> CreateArena(const HelloRequest& hello, std::uint64_t bytes) override;
  Result<std::vector<memory::OwnedFd>> Slabs(std::uint32_t rank, std::size_t first,
                                             std::size_t count) override;
  Status Publish(const HelloRequest& hello, const memory::OwnedFd& manifest,
                 const PublishRequest& request) override;
  Result<std::optional<OpenedStream>> OpenStream(const HelloRequest& hello,
                                                 const OpenStreamRequest& request) override;
  Result<std::optional<StreamedBatch>> NextBatch(const NextBatchRequest& request) override;
  void CloseStream(const CloseStreamRequest& request) override;
  Status ReleaseArena(std::uint32_t rank) override;
  Result<std::optional<ArenaShape>> AwaitArena(std::uint32_t rank) override;
  CommandBook::Core OnCoreAttached(const AttachRequest& request) override;
  void OnCoreGone(CommandBook::Core core) override;
  std::optional<Command> NextCommand(CommandBook::Core core) override;
  void OnCommandDone(CommandBook::Core core, const CommandDoneRequest& done) override;
  void OnCheckpointRead(const LoadOutcome& outcome);
  void OnLoadedByEngine(std::uint32_t rank, const std::string& reason);
  void OnXid(const nvml::XidEvent& event);

  AgentOptions options_;
  const NodeFacts node_facts_;
  Metrics metrics_;
  mutable std::mutex mutex_;
  StartupMachine machine_;
  std::string transport_fallback_;         ///< Of the last pull (AgentReport).
  std::optional<Timeline> timeline_kept_;  ///< As it was last written to the file.
  std::optional<EngineLoad> load_;         ///< As the engine said last.
  std::optional<EngineLoad> load_told_;    ///< In the last report, of this time.
  std::chrono::steady_clock::time_point load_told_at_;
  std::string no_load_;                    ///< Why it is not known.
  bool began_again_ = false;               ///< An agent of this pod's has had an engine serve.
  std::atomic<bool> engine_asked_{false};  ///< A rank wants to know where its weights are.
  std::unique_ptr<WeightStore> store_;
  ModelFileSource files_;
  std::atomic<bool> files_in_place_{false};

  std::mutex work_mutex_;
  std::condition_variable_any work_changed_;
  bool work_ = false;

  std::optional<AgentState> shown_;  ///< guarded by mutex_, as the two above
  Commands commands_;
  std::unique_ptr<Canary> canary_;  ///< None without an engine URL.
  std::unique_ptr<RoleDriver> role_;
  std::unique_ptr<GraphCapture> graphs_;       ///< None where that is not our matter.
  std::unique_ptr<http::Client> busy_client_;  ///< Of the thread of graphs_.
  std::mutex role_file_mutex_;
  bool told_to_sleep_ = false;  ///< By FallAsleepWithoutWeights, its thread's.
  bool role_kept_ = false;      ///< Guarded: there is a file that says that it does not serve.
  std::unique_ptr<Certifier> certifier_;  ///< None: plain HTTP, everybody is believed.
  std::unique_ptr<StateReuse> state_;     ///< None where compile caches are not reused.
  std::unique_ptr<Reporter> reporter_;
  std::unique_ptr<CheckpointStream> stream_;
  nvml::XidWatch xids_;  ///< Of the GPUs of the engine's ranks.
  std::unique_ptr<EngineServer> engine_;
  std::unique_ptr<EngineProbe> probe_;
  std::jthread hydrate_;
  std::jthread pull_;
  std::jthread prepare_;
  std::atomic<bool> up_{false};  ///< All of the above are there: requests may be answered.
  std::unique_ptr<http::Server> http_;
  std::unique_ptr<http::Server> tls_http_;  ///< With a certifier.
};

}  // namespace rouse::agent
