// The report an agent sends to the operator, and when it sends the next one. Pure.

#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "agent/startup/machine.h"
#include "agent/startup/role.h"
#include "common/messages.h"

namespace rouse::agent {

/// Who this agent is; fixed for its life.
struct AgentIdentity {
  std::string pod_namespace;
  std::string pod;
  std::string pod_uid;
  std::string node;
  std::string address;  ///< Where other agents reach it, "http://10.244.0.7:7410".
};

/// What the agent holds now.
struct Holdings {
  std::optional<WeightsReport> weights;
  BytesBySource bytes_by_source;
  std::string transport;
  std::string transport_fallback;
  std::string state_origin;
  std::string state_miss;
  std::optional<EngineLoad> load;  ///< As the engine said last; told while it serves.
};

/// What an instance is, as its start and its role say together: the role's word counts unless it is
/// to serve. `placeholders`: its engine has no weights yet, whatever it answers.
struct Standing {
  AgentState state = AgentState::kStarting;
  std::string message;
  std::optional<Timeline> timeline;  ///< Of its last wake, else of its start.
};
Standing StandingOf(const StartupMachine& machine, const RoleStanding& role, bool placeholders);

AgentReport BuildReport(const AgentIdentity& self, const Standing& standing,
                        const Holdings& holdings);

/// Gives `answer` the keepers of the one before, when it left them out because they are the same.
void KeepKnown(Assignment& answer, const Assignment& before);

/// How long to wait until the next report: `report_after` after an answer; after `failures` in a
/// row 200 ms doubled for each, at most 10 s. `jitter` in [0, 1) spreads it over the upper half.
std::chrono::milliseconds NextReport(int failures, std::chrono::milliseconds report_after,
                                     double jitter);

}  // namespace rouse::agent
