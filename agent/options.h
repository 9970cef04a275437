// The agent's flags. Every one can be given by an environment variable too, which is how the
// operator gives them to the pod.

#pragma once

#include <chrono>
#include <string>
#include <variant>

#include "agent/server/agent.h"
#include "common/log.h"

namespace rouse::agent {

struct ProgramOptions {
  AgentOptions agent;
  std::chrono::milliseconds drain{5'000};
  log::Level log_level = log::Level::kInfo;
};

/// The options, or the exit status of a program that has printed help, its version or what is
/// wrong.
std::variant<ProgramOptions, int> ParseOptions(int argc, const char* const* argv);

}  // namespace rouse::agent
