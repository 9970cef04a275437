// The operator as one object: caches, queue, workers, leader election, HTTP server.
//
// Threads: four informers, the leader elector, the event recorder, `workers` reconcilers, the load
// relay, "trust", the scaler's, and those of HTTP clients and servers. Every replica watches and
// answers agents; only the leader reconciles and answers KEDA: the port of its scaler is closed on
// the others, so that clients of the Service end up at the leader, and no connection stays at
// another.

#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/http.h"
#include "operator/actuate/agents.h"
#include "operator/actuate/cache.h"
#include "operator/actuate/load_relay.h"
#include "operator/actuate/loads.h"
#include "operator/actuate/metrics.h"
#include "operator/actuate/pending.h"
#include "operator/actuate/reconciler.h"
#include "operator/actuate/reports.h"
#include "operator/kube/client.h"
#include "operator/kube/config.h"
#include "operator/kube/events.h"
#include "operator/kube/informer.h"
#include "operator/kube/leader.h"
#include "operator/kube/work_queue.h"
#include "operator/scaler/server.h"
#include "operator/trust/bundles.h"
#include "operator/trust/issuer.h"
#include "operator/trust/keeper.h"

namespace rouse::actuate {

struct AppOptions {
  std::string listen_host = "0.0.0.0";
  std::uint16_t port = 7480;         ///< Probes and metrics, plain HTTP.
  std::uint16_t tls_port = 7482;     ///< Agents and other replicas.
  std::uint16_t scaler_port = 7481;  ///< For KEDA; 0: none.
  std::string own_ip;                ///< Where other replicas reach this one; empty: they do not.
  std::string watch_namespace;       ///< Empty: all.
  std::string own_namespace;         ///< Where the Lease and the Service are.
  std::string own_name;              ///< Unique part of the leader's identity, for Events.
  std::string service_name;          ///< Its ClusterIP is what agents are told, unless
                                     ///< pods.agent_facing_url is set.
  std::string lease_name = "rouse-operator";
  kube::LeaseTiming lease;
  std::string authorities_secret = "rouse-authorities";
  tls::RotationPolicy trust;
  std::chrono::milliseconds watch_silence{90'000};
  std::chrono::milliseconds call_timeout{10'000};
  std::chrono::milliseconds agent_timeout{2'000};
  int workers = 4;
  plan::Policy policy;
  plan::PodConfig pods;
};

class App {
 public:
  /// Builds clients and listens on the port; watches nothing yet.
  static Result<std::unique_ptr<App>> Create(const kube::Config& config, AppOptions options);
  ~App();

  /// Runs until Stop (ok) or until the leadership is lost (an error: the process should end, and be
  /// started anew). Call once.
  Status Run();

  /// Thread-safe; may come before Run.
  void Stop();

  std::uint16_t port() const { return server_->port(); }
  std::uint16_t tls_port() const { return tls_server_->port(); }

 private:
  App(AppOptions options, std::shared_ptr<Metrics> metrics);

  bool WaitUntilReady();
  void StartWorkers();
  void Work();
  /// Empty once it is known, else why not.
  std::string FindAgentFacingUrl();
  bool Leading() const;
  Status ConfirmLeading() const;
  Status StartScaler();
  void StopScaler();
  void LoadChanged(const std::string& key);
  void TakeLoad(const PodLoad& load);
  http::Response TakeLoads(const http::Request& request);
  Result<plan::ServiceLoad> LookAtLoad(const std::string& key) const;
  std::string OwnUrl() const;
  std::string LeaderUrl() const;
  bool Stopping() const;
  http::Response Answer(const http::Request& request);
  http::Response AnswerTrusted(const http::Request& request);
  std::string NotReady() const;
  void WireTrust();
  bool AwaitAuthorities();
  void Scrape(Metrics& metrics) const;
  void Tell(const api::ObjectMeta& service, const plan::Note& note);

  AppOptions options_;
  std::shared_ptr<Metrics> metrics_;  ///< Shared with the clients' callbacks.
  Pending pending_;
  Loads loads_;
  kube::WorkQueue queue_;
  Cache cache_;
  std::unique_ptr<kube::Client> client_;        ///< Watches and writes.
  std::unique_ptr<kube::Client> lease_client_;  ///< Gives up in time to notice a lost lease.
  std::unique_ptr<kube::Client> report_client_;
  std::unique_ptr<trust::Bundles> bundles_;
  std::unique_ptr<trust::Keeper> keeper_;
  std::unique_ptr<trust::Issuer> issuer_;
  std::unique_ptr<HttpAgents> agents_;
  std::unique_ptr<LoadRelay> relay_;
  std::unique_ptr<Reports> reports_;
  std::unique_ptr<kube::EventRecorder> events_;
  std::unique_ptr<kube::Informer> services_;
  std::unique_ptr<kube::Informer> pods_;
  std::unique_ptr<kube::Informer> endpoints_;
  std::unique_ptr<kube::Informer> nodes_;  ///< Null where one namespace is watched only.
  std::unique_ptr<Reconciler> reconciler_;
  std::vector<std::thread> workers_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;               ///< Guarded by mutex_.
  bool elected_ = false;                ///< Guarded by mutex_.
  std::string lost_;                    ///< Guarded by mutex_: why the leadership was lost.
  std::string not_ready_ = "starting";  ///< Guarded by mutex_; empty once ready.
  std::unique_ptr<kube::LeaderElector> elector_;  ///< Guarded by mutex_.
  std::mutex scaler_mutex_;
  std::unique_ptr<scaler::Server> scaler_;  ///< Guarded by scaler_mutex_; while it leads.
  // Last: answers use everything above.
  std::unique_ptr<http::Server> server_;
  std::unique_ptr<http::Server> tls_server_;
};

}  // namespace rouse::actuate
