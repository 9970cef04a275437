#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_operator.h"

namespace rouse::agent {

/// An agent that has some of the `all` bytes that it pulls from the held source, and at most half
/// of them. On a busy machine more may come in the moments in which the source is let go: then
/// another agent is started. Fails the test when none is caught so.
std::unique_ptr<AgentProcess> StartMidPull(FakeOperator& fake_operator, const HeldSource& source,
                                           const std::string& pod,
                                           const std::map<std::string, std::string>& environment,
                                           std::uint64_t all);

}  // namespace rouse::agent
