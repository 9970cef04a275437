#include "common/certificates.h"

#include "common/protocol.h"

namespace rouse {

json::Json ToJson(const CertificateRequest& request) {
  return {{"protocol", kCertificatesProtocol},
          {"version", kCertificatesVersion},
          {"csr", request.csr},
          {"token", request.token}};
}

Result<CertificateRequest> CertificateRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kCertificatesProtocol, kCertificatesVersion));
  CertificateRequest request{.csr = in.String("csr"), .token = in.String("token")};
  if (request.token.empty()) in.Fail("token", "must not be empty");
  if (request.token.size() > kMaxTokenBytes) in.Fail("token", "is over the limit of 16384 bytes");
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

json::Json ToJson(const CertificateAnswer& answer) {
  return {{"protocol", kCertificatesProtocol},
          {"version", kCertificatesVersion},
          {"certificate", answer.certificate},
          {"renewAfterMs", answer.renew_after.count()}};
}

Result<CertificateAnswer> CertificateAnswerFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kCertificatesProtocol, kCertificatesVersion));
  CertificateAnswer answer{.certificate = in.String("certificate"),
                           .renew_after = std::chrono::milliseconds(in.Int("renewAfterMs", 1))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return answer;
}

}  // namespace rouse
