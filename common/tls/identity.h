// Who somebody is, as a certificate says it. Pure.
//
// A certificate of Rouse carries exactly one URI among its names: spiffe://rouse.dev/operator, or
// spiffe://rouse.dev/ns/NAMESPACE/pod/POD/uid/UID of an agent. What is allowed is decided by it and
// by nothing else: addresses are used again by other pods, and bodies are claims.

#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::tls {

struct Identity {
  enum class Kind { kOperator, kAgent };

  Kind kind = Kind::kAgent;
  // The agent's pod; empty for the operator.
  std::string pod_namespace;
  std::string pod;
  std::string pod_uid;

  bool operator==(const Identity&) const = default;
};

inline Identity Operator() {
  return {.kind = Identity::Kind::kOperator, .pod_namespace = "", .pod = "", .pod_uid = ""};
}
inline Identity Agent(std::string ns, std::string pod, std::string uid = "") {
  return {.kind = Identity::Kind::kAgent,
          .pod_namespace = std::move(ns),
          .pod = std::move(pod),
          .pod_uid = std::move(uid)};
}

std::string ToUri(const Identity& identity);
/// InvalidArgument for whatever ToUri would not have made of a pod's names.
Result<Identity> IdentityFromUri(std::string_view uri);

/// "the operator" or "the agent of pod default/demo-0", for messages.
std::string Describe(const Identity& identity);

/// Whether `found` is whom `expected` describes: what is empty in that may be anything.
bool Matches(const Identity& expected, const Identity& found);

}  // namespace rouse::tls
