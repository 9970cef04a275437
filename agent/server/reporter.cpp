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
  return answered_ ? std::optional(assignment_.siblings) : std::nullopt;
}

std::optional<LiveKeepers> Reporter::keepers() const {
  const std::scoped_lock lock(mutex_);
  if (!answered_) return std::nullopt;
  return LiveKeepers{.keepers = assignment_.keepers,
                     .copies = static_cast<std::size_t>(assignment_.state_copies)};
}

Status Reporter::Send() {
  AgentReport report = hooks_.make();
  {
    const std::scoped_lock lock(mutex_);
    report.keepers_digest = assignment_.keepers_digest;
  }
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
  answered_ = true;
  return Status();
}

void Reporter::Run(const std::stop_token& stop) {
  std::minstd_rand random(std::random_device{}());
  std::uniform_real_distribution<double> jitter(0.0, 1.0);
  int failures = 0;
  std::string last_error;
  while (!stop.stop_requested()) {
    {
      const std::scoped_lock lock(mutex_);
      pending_ = false;
    }
    const Status sent = Send();
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
