// How an agent asks the operator for its certificate: POST /v1/certificates (docs/protocols.md §1).
// Strict; errors name the field.

#pragma once

#include <chrono>
#include <string>

#include "common/json.h"
#include "common/result.h"

namespace rouse {

inline constexpr std::string_view kCertificatesProtocol = "rouse-certificates";
inline constexpr int kCertificatesVersion = 1;
/// Of the token that proves which pod asks.
inline constexpr char kTokenAudience[] = "rouse";
inline constexpr std::size_t kMaxTokenBytes = 16u << 10;

struct CertificateRequest {
  std::string csr;    ///< PEM; only its key counts.
  std::string token;  ///< Of a projected volume: audience "rouse", bound to the pod.

  bool operator==(const CertificateRequest&) const = default;
};

json::Json ToJson(const CertificateRequest& request);
Result<CertificateRequest> CertificateRequestFromJson(const json::Json& value);

struct CertificateAnswer {
  std::string certificate;  ///< PEM.
  std::chrono::milliseconds renew_after{0};

  bool operator==(const CertificateAnswer&) const = default;
};

json::Json ToJson(const CertificateAnswer& answer);
Result<CertificateAnswer> CertificateAnswerFromJson(const json::Json& value);

}  // namespace rouse
