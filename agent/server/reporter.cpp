#include "agent/server/reporter.h"

#include <pthread.h>

#include <random>

#include "agent/startup/report.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kReportTimeout{5'000};
/// Changes that come in a burst make one report.
constexpr milliseconds kGather{10};
/// A wake is told by the answer to its command. Most are over before a report of one would be kept,
/// which is a write to the API server.
constexpr milliseconds kWake{500};

}  // namespace

Reporter::Reporter(std::unique_ptr<http::Client> client, Hooks hooks)
    : client_(std::move(client)), hooks_(std::move(hooks)) {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "report");
    hooks_.begin(stop);
    Run(stop);
  });
}

Reporter::~Reporter() = default;

void Reporter::Changed() {
  const std::scoped_lock lock(mutex_);
  pending_ = true;
  changed_.notify_all();
}

std::vector<Peer> Reporter::peers() const {
  const std::scoped_lock lock(mutex_);
  return assignment_.peers;
}

bool Reporter::expecting() const {
  const std::scoped_lock lock(mutex_);
  return assignment_.expecting;
}

std::optional<std::vector<Sibling>> Reporter::siblings() const {
  const std::scoped_lock lock(mutex_);
  return told_ ? std::optional(assignment_.siblings) : std::nullopt;
}

std::optional<LiveKeepers> Reporter::keepers() const {
  const std::scoped_lock lock(mutex_);
  if (!told_) return std::nullopt;
  return LiveKeepers{.keepers = assignment_.keepers,
                     .copies = static_cast<std::size_t>(assignment_.state_copies)};
}

AgentReport Reporter::Make(const std::stop_token& stop) {
  const auto latest = std::chrono::steady_clock::now() + kWake;
  for (;;) {
    {
      const std::scoped_lock lock(mutex_);
      pending_ = false;
    }
    AgentReport report = hooks_.make();
    std::unique_lock lock(mutex_);
    const bool wakes = report.state == AgentState::kWaking && told_ != report.state;
    if (!wakes || std::chrono::steady_clock::now() >= latest || stop.stop_requested()) {
      report.keepers_digest = assignment_.keepers_digest;
      return report;
    }
    changed_.wait_until(lock, stop, latest, [this] { return pending_; });
  }
}

Status Reporter::Send(const AgentReport& report) {
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         client_->Send({.method = "POST",
                                        .target = "/v1/agents/report",
                                        .headers = {{"Content-Type", "application/json"}},
                                        .body = json::Dump(ToJson(report)),
                                        .timeout = kReportTimeout,
                                        .deadline = kReportTimeout},
                                       4u << 20));
  if (answer.status != 200) return http::ToStatus(answer, "report to the operator");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "assignment"));
  ROUSE_ASSIGN_OR_RETURN(Assignment assignment, AssignmentFromJson(document));
  const std::scoped_lock lock(mutex_);
  KeepKnown(assignment, assignment_);
  assignment_ = std::move(assignment);
  told_ = report.state;
  return Status();
}

void Reporter::Run(const std::stop_token& stop) {
  std::minstd_rand random(std::random_device{}());
  std::uniform_real_distribution<double> jitter(0.0, 1.0);
  int failures = 0;
  std::string last_error;
  while (!stop.stop_requested()) {
    const Status sent = Send(Make(stop));
    if (stop.stop_requested()) return;
    hooks_.on_sent(sent);
    failures = sent.ok() ? 0 : failures + 1;
    if (!sent.ok() && sent.message() != last_error) {
      log::Warning("report to the operator failed, trying again", {{"error", sent.ToString()}});
    } else if (sent.ok() && !last_error.empty()) {
      log::Info("the operator takes reports again");
    }
    last_error = sent.message();

    std::unique_lock lock(mutex_);
    const milliseconds wait =
        NextReport(failures, milliseconds(assignment_.report_after_ms), jitter(random));
    // After a failure a change does not hurry us: the operator is away either way.
    changed_.wait_for(lock, stop, wait, [&] { return pending_ && failures == 0; });
    if (pending_ && failures == 0) {
      changed_.wait_for(lock, stop, kGather, [] { return false; });
    }
  }
}

}  // namespace rouse::agent
