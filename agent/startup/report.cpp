#include "agent/startup/report.h"

#include <algorithm>

namespace rouse::agent {
namespace {

/// What the operator accepts (common/messages.cpp), less room for the mark.
constexpr std::size_t kMaxReportText = 4000;

std::string Shortened(std::string text) {
  if (text.size() > kMaxReportText) {
    text.resize(kMaxReportText);
    text += "...";
  }
  return text;
}

}  // namespace

Standing StandingOf(const StartupMachine& machine, const RoleStanding& role, bool placeholders) {
  Standing standing{.state = machine.state(),
                    .message = machine.message(),
                    .timeline = role.timeline ? role.timeline : machine.timeline()};
  switch (role.state) {
    case RoleState::kActive:
      if (placeholders && standing.state == AgentState::kServing) {
        standing.state = AgentState::kWarming;
        standing.message = "its engine has no weights: it falls asleep, and gets them when woken";
      }
      return standing;
    case RoleState::kSleeping:
      standing.state = AgentState::kSleeping;
      break;
    case RoleState::kAsleep:
      standing.state = AgentState::kAsleep;
      break;
    case RoleState::kWaking:
      standing.state = AgentState::kWaking;
      break;
    case RoleState::kFailed:
      standing.state = AgentState::kFailed;
      break;
  }
  standing.message = role.message;
  return standing;
}

AgentReport BuildReport(const AgentIdentity& self, const Standing& standing,
                        const Holdings& holdings) {
  return {.pod_namespace = self.pod_namespace,
          .pod = self.pod,
          .pod_uid = self.pod_uid,
          .node = self.node,
          .address = self.address,
          .state = standing.state,
          .message = Shortened(standing.message),
          .weights = holdings.weights,
          .bytes_by_source = holdings.bytes_by_source,
          .transport = Shortened(holdings.transport),
          .transport_fallback = Shortened(holdings.transport_fallback),
          .state_origin = Shortened(holdings.state_origin),
          .state_miss = Shortened(holdings.state_miss),
          .timeline = standing.timeline,
          .load = standing.state == AgentState::kServing ? holdings.load : std::nullopt};
}

void KeepKnown(Assignment& answer, const Assignment& before) {
  if (!answer.keepers.empty() || answer.keepers_digest.empty()) return;
  if (answer.keepers_digest == before.keepers_digest) answer.keepers = before.keepers;
}

std::chrono::milliseconds NextReport(int failures, std::chrono::milliseconds report_after,
                                     double jitter) {
  if (failures <= 0) return report_after;
  const double doubled = 200.0 * static_cast<double>(1 << std::min(failures - 1, 10));
  const double longest = std::min(doubled, 10'000.0);
  return std::chrono::milliseconds(static_cast<std::int64_t>(longest * (0.5 + 0.5 * jitter)));
}

}  // namespace rouse::agent
