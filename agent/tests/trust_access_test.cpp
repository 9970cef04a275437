#include <catch2/catch.hpp>

#include "agent/trust/access.h"

namespace rouse::agent {
namespace {

const std::optional<tls::Identity> kNobody;
const std::optional<tls::Identity> kOperator = tls::Operator();
const std::optional<tls::Identity> kPeer = tls::Agent("ns", "demo-1", "u-1");
const std::optional<tls::Identity> kStranger = tls::Agent("other", "demo-1", "u-1");

StatusCode Ask(Port port, const char* path, const std::optional<tls::Identity>& who) {
  return MayAsk(port, path, who, "ns").code();
}

}  // namespace

TEST_CASE("only the operator says what an instance is to be") {
  CHECK(Ask(Port::kTrusted, "/v1/role", kOperator) == StatusCode::kOk);
  for (const auto& who : {kNobody, kPeer, kStranger}) {
    CHECK(Ask(Port::kTrusted, "/v1/role", who) == StatusCode::kPermissionDenied);
  }
}

TEST_CASE("only agents of the namespace are given weights and files") {
  for (const char* path : {"/v1/weights/open", "/v1/weights/stage", "/v1/weights/renew",
                           "/v1/weights/close", "/v1/files", "/v1/files/abc", "/v1/anything"}) {
    INFO(path);
    CHECK(Ask(Port::kTrusted, path, kPeer) == StatusCode::kOk);
    for (const auto& who : {kNobody, kOperator, kStranger}) {
      CHECK(Ask(Port::kTrusted, path, who) == StatusCode::kPermissionDenied);
    }
  }
}

TEST_CASE("the plain port has probes and metrics only, the other one all but those") {
  for (const char* path : {"/metrics", "/healthz", "/readyz", "/startupz", "/"}) {
    CHECK(Ask(Port::kPlain, path, kNobody) == StatusCode::kOk);
    CHECK(Ask(Port::kTrusted, path, kPeer) == StatusCode::kNotFound);
  }
  for (const char* path : {"/v1/role", "/v1/weights/open", "/v1/files"}) {
    CHECK(Ask(Port::kPlain, path, kNobody) == StatusCode::kFailedPrecondition);
    CHECK(Ask(Port::kOnly, path, kNobody) == StatusCode::kOk);
  }
}

TEST_CASE("a requester is whom the certificate names") {
  CHECK(CheckRequester("ns/demo-1", kPeer).ok());
  CHECK(CheckRequester("whoever", kNobody).ok());  // Of an agent without certificates.
  CHECK(CheckRequester("ns/demo-2", kPeer).code() == StatusCode::kPermissionDenied);
}

}  // namespace rouse::agent
