// What the tests of conversations on the engine socket say and hear.

#pragma once

#include <string>
#include <variant>

#include "agent/engine/protocol.h"

namespace rouse::agent {

inline Result<EngineRequest> Request(EngineRequest request) {
  return request;
}

/// The message of a reply; empty when the step is no reply, or one without a message.
template <typename Step>
std::string ErrorOf(const Step& step) {
  const auto* reply = std::get_if<step::Reply>(&step);
  return reply == nullptr ? "" : reply->body.value("message", "");
}

}  // namespace rouse::agent
