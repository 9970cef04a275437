#include "agent/tests/fake_operator.h"

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "common/seeded.h"

namespace rouse::agent {
namespace {

std::unique_ptr<http::Server> MustListen(http::Handler handler) {
  auto server = http::Server::Listen("127.0.0.1", 0, std::move(handler));
  if (!server.ok()) throw std::runtime_error(server.status().ToString());
  return *std::move(server);
}

http::Response MustSend(const std::string& address, const http::Request& request) {
  auto client = http::Client::Create(address);
  if (!client.ok()) throw std::runtime_error(client.status().ToString());
  auto answer = (*client)->Send(request);
  if (!answer.ok()) throw std::runtime_error(answer.status().ToString());
  return *std::move(answer);
}

}  // namespace

http::Response TellRole(const std::string& address, const RoleRequest& role) {
  return MustSend(address, {.method = "POST",
                            .target = "/v1/role",
                            .headers = {{"Content-Type", "application/json"}},
                            .body = json::Dump(ToJson(role))});
}

std::string MetricsOf(const AgentReport& report) {
  return MustSend(report.address, {.target = "/metrics"}).body;
}

FakeOperator::FakeOperator()
    : server_(MustListen([this](const http::Request& in) { return Handle(in); })) {}

http::Response FakeOperator::Handle(const http::Request& request) {
  if (away_) return http::ErrorResponse(Unavailable("the operator is away"));
  if (request.method != "POST" || request.target != "/v1/agents/report") {
    return http::ErrorResponse(NotFound(request.target));
  }
  const auto document = json::Parse(request.body, "report");
  if (!document.ok()) return http::ErrorResponse(document.status());
  const auto report = AgentReportFromJson(*document);
  if (!report.ok()) return http::ErrorResponse(report.status());
  const std::scoped_lock lock(mutex_);
  last_[report->pod] = *report;
  ++counts_[report->pod];
  Assignment assignment{.path = StartPath::kStorage,
                        .peers = {},
                        .report_after_ms = report_after_ms_,
                        .expecting = expecting_,
                        .siblings = {},
                        .keepers = {},
                        .state_copies = 0};
  if (named_) {
    assignment.peers = *named_;
  } else {
    for (const bool partial : {false, true}) {
      for (const auto& [pod, other] : last_) {
        if (pod == report->pod || !other.weights) continue;
        if (partial ? !other.weights->arriving : !other.weights->servable) continue;
        assignment.peers.push_back(
            {.pod = pod, .node = other.node, .address = other.address, .partial = partial});
      }
    }
    // As the operator does, not the same ones to all.
    if (assignment.peers.size() > 2) {
      const auto others = assignment.peers.begin() + 1;
      std::sort(others, assignment.peers.end(), [&](const Peer& a, const Peer& b) {
        const auto weight = [&](const Peer& peer) {
          return Mix(HashName(report->pod) ^ HashName(peer.pod));
        };
        return weight(a) < weight(b);
      });
    }
  }
  assignment.siblings = more_siblings_;
  for (const auto& [pod, other] : last_) {
    if (copies_ == 0 || other.address.empty()) continue;
    assignment.keepers.push_back({.pod = pod, .node = "node-of-" + pod, .address = other.address});
  }
  assignment.state_copies = copies_;
  for (const auto& [pod, other] : last_) {
    if (pod == report->pod || other.state == AgentState::kFailed) continue;
    if (separate_.contains(report->pod) != separate_.contains(pod)) continue;
    assignment.siblings.push_back(
        {.pod = pod, .address = other.address, .decided_at_us = decided_[pod]});
  }
  return http::JsonResponse(json::Dump(ToJson(assignment)));
}

void FakeOperator::SetDecided(const std::string& pod, std::int64_t decided_at_us) {
  const std::scoped_lock lock(mutex_);
  decided_[pod] = decided_at_us;
}

void FakeOperator::AddSibling(const Sibling& sibling) {
  const std::scoped_lock lock(mutex_);
  more_siblings_.push_back(sibling);
}

void FakeOperator::Separate(const std::string& pod) {
  const std::scoped_lock lock(mutex_);
  separate_.insert(pod);
}

void FakeOperator::Forget(const std::string& pod) {
  const std::scoped_lock lock(mutex_);
  last_.erase(pod);
}

std::optional<AgentReport> FakeOperator::Last(const std::string& pod) const {
  const std::scoped_lock lock(mutex_);
  const auto found = last_.find(pod);
  return found == last_.end() ? std::nullopt : std::optional(found->second);
}

int FakeOperator::reports(const std::string& pod) const {
  const std::scoped_lock lock(mutex_);
  const auto found = counts_.find(pod);
  return found == counts_.end() ? 0 : found->second;
}

void FakeOperator::NamePeers(std::vector<Peer> peers) {
  const std::scoped_lock lock(mutex_);
  named_ = std::move(peers);
}

void FakeOperator::NameAll() {
  const std::scoped_lock lock(mutex_);
  named_.reset();
}

bool FakeOperator::WaitFor(const std::string& pod,
                           const std::function<bool(const AgentReport&)>& is,
                           std::chrono::milliseconds longest) const {
  return Eventually(
      [&] {
        const auto report = Last(pod);
        return report && is(*report);
      },
      longest);
}

bool FakeOperator::WaitForState(const std::string& pod, AgentState state) const {
  return WaitFor(pod, [&](const AgentReport& report) { return report.state == state; });
}

bool FakeOperator::WaitForServable(const std::string& pod) const {
  return WaitFor(
      pod, [](const AgentReport& report) { return report.weights && report.weights->servable; });
}

FakeEngineHttp::FakeEngineHttp()
    : server_(MustListen([this](const http::Request& in) { return Handle(in); })) {}

http::Response FakeEngineHttp::Handle(const http::Request& request) {
  if (request.target == "/health") {
    http::Response answer;
    answer.status = healthy_ ? 200 : 503;
    return answer;
  }
  if (request.target == "/metrics") {
    const std::string count = std::to_string(requests_);
    return {.status = 200,
            .headers = {{"Content-Type", "text/plain"}},
            .body =
                "# TYPE vllm:num_requests_running gauge\n"
                "vllm:num_requests_running{engine=\"0\"} " +
                count +
                ".0\n"
                "vllm:num_requests_waiting{engine=\"0\"} 0.0\n"};
  }
  ++canaries_;
  std::string text;
  {
    const std::scoped_lock lock(mutex_);
    last_canary_ = request.body;
    text = text_;
  }
  if (!answers_) return {.status = 500, .headers = {}, .body = "no token today"};
  const json::Json asked = json::Json::parse(request.body, nullptr, false);
  if (!asked.is_object() || !asked.value("stream", false)) {
    return http::JsonResponse(json::Dump({{"choices", {{{"text", text}}}}}));
  }
  {
    const std::scoped_lock lock(mutex_);
    if (other_times_ > 0) {
      --other_times_;
      text = other_text_;
    }
  }
  std::string events;
  for (int i = 0; i < asked.value("max_tokens", 1); ++i) {
    events += "data: " + json::Dump({{"choices", {{{"text", text}}}}}) + "\n\n";
  }
  return {.status = 200,
          .headers = {{"Content-Type", "text/event-stream"}},
          .body = events + "data: [DONE]\n\n"};
}

void FakeEngineHttp::SetText(const std::string& text) {
  const std::scoped_lock lock(mutex_);
  text_ = text;
}

void FakeEngineHttp::SetTextFor(int times, const std::string& text) {
  const std::scoped_lock lock(mutex_);
  other_times_ = times;
  other_text_ = text;
}

std::string FakeEngineHttp::last_canary() const {
  const std::scoped_lock lock(mutex_);
  return last_canary_;
}

FakeSourceProxy::FakeSourceProxy(const std::string& source, Change change)
    : change_(std::move(change)) {
  auto client = http::Client::Create(source);
  if (!client.ok()) throw std::runtime_error(client.status().ToString());
  source_ = *std::move(client);
  server_ = MustListen([this](const http::Request& in) {
    http::Request out{.method = in.method, .target = in.target, .headers = {}, .body = in.body};
    if (!in.body.empty()) out.headers["Content-Type"] = "application/json";
    auto answer = source_->Send(out);
    http::Response passed = answer.ok()
                                ? http::Response{.status = answer->status,
                                                 .headers = {{"Content-Type", "application/json"}},
                                                 .body = answer->body}
                                : http::ErrorResponse(answer.status());
    change_(in, passed);
    return passed;
  });
}

}  // namespace rouse::agent
