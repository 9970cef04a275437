// Stands in for the operator and for an engine's HTTP port, over real HTTP on loopback.

#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/http.h"
#include "common/messages.h"
#include "common/role.h"
#include "common/tests/eventually.h"

namespace rouse::agent {

/// Tells the agent at `address` what to be, as the operator does. Throws when nobody answers.
http::Response TellRole(const std::string& address, const RoleRequest& role);

/// What an agent that has reported answers to /metrics. Throws when nobody answers.
std::string MetricsOf(const AgentReport& report);

using test::Eventually;

/// Keeps the last report of each pod, and names every servable pod to all others as a peer, and
/// those that still pull behind it.
class FakeOperator {
 public:
  FakeOperator();

  std::string url() const { return "http://127.0.0.1:" + std::to_string(server_->port()); }

  std::optional<AgentReport> Last(const std::string& pod) const;
  int reports(const std::string& pod) const;
  /// Names these peers instead, best first.
  void NamePeers(std::vector<Peer> peers);
  /// From now on it names those that it knows of again.
  void NameAll();
  /// From now on it says that nobody else may come to have weights.
  void ExpectNobody() { expecting_ = false; }
  /// When the start of a pod was decided, as others are told; else at 0.
  void SetDecided(const std::string& pod, std::int64_t decided_at_us);
  /// Names this one as a sibling too, by this address.
  void AddSibling(const Sibling& sibling);
  /// This pod is of another launch: no other pod is its sibling, but those of it.
  void Separate(const std::string& pod);
  /// From now on it names all that live as keepers of caches, each on a node of its own, and says
  /// that there are to be so many copies.
  void NameKeepers(int copies) { copies_ = copies; }
  /// The pod is gone, and so is its agent: it is named to nobody until it reports anew.
  void Forget(const std::string& pod);
  /// Answers with 503 while true.
  void SetAway(bool away) { away_ = away; }
  /// From the next answer on, agents report so rarely unless something happens.
  void SetReportAfter(std::chrono::milliseconds pause) { report_after_ms_ = pause.count(); }

  bool WaitFor(const std::string& pod, const std::function<bool(const AgentReport&)>& is,
               std::chrono::milliseconds longest = std::chrono::seconds(60)) const;
  bool WaitForState(const std::string& pod, AgentState state) const;
  bool WaitForServable(const std::string& pod) const;

 private:
  http::Response Handle(const http::Request& request);

  mutable std::mutex mutex_;
  std::map<std::string, AgentReport> last_;
  std::map<std::string, int> counts_;
  std::set<std::string> separate_;
  std::map<std::string, std::int64_t> decided_;
  std::vector<Sibling> more_siblings_;
  std::optional<std::vector<Peer>> named_;
  std::atomic<bool> away_{false};
  std::atomic<bool> expecting_{true};
  std::atomic<int> copies_{0};
  std::atomic<std::int64_t> report_after_ms_{100};
  std::unique_ptr<http::Server> server_;
};

/// GET /health and /metrics, POST /v1/completions.
class FakeEngineHttp {
 public:
  FakeEngineHttp();

  std::string url() const { return "http://127.0.0.1:" + std::to_string(server_->port()); }
  void SetHealthy(bool healthy) { healthy_ = healthy; }
  void SetAnswers(bool answers) { answers_ = answers; }
  /// What completions say from now on.
  void SetText(const std::string& text);
  /// What the next `times` streamed ones say instead.
  void SetTextFor(int times, const std::string& text);
  /// What its metrics say of requests under way.
  void SetRequests(int requests) { requests_ = requests; }
  int canaries() const { return canaries_; }
  std::string last_canary() const;

 private:
  http::Response Handle(const http::Request& request);

  std::atomic<bool> healthy_{false};
  std::atomic<bool> answers_{true};
  std::atomic<int> canaries_{0};
  std::atomic<int> requests_{0};
  mutable std::mutex mutex_;
  std::string last_canary_;
  std::string text_ = "x";
  int other_times_ = 0;
  std::string other_text_;
  std::unique_ptr<http::Server> server_;
};

/// Between a target and its real source: passes everything on, and lets a test change each answer
/// or act at that moment.
class FakeSourceProxy {
 public:
  using Change = std::function<void(const http::Request&, http::Response&)>;
  FakeSourceProxy(const std::string& source, Change change);

  std::string url() const { return "http://127.0.0.1:" + std::to_string(server_->port()); }

 private:
  std::unique_ptr<http::Client> source_;
  Change change_;
  std::unique_ptr<http::Server> server_;
};

}  // namespace rouse::agent
