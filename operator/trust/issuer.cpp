#include "operator/trust/issuer.h"

#include <algorithm>

#include "common/certificates.h"
#include "common/log.h"
#include "operator/kube/resource.h"

namespace rouse::trust {
namespace {

constexpr std::size_t kMaxBody = 64u << 10;
/// Each holds a thread of the server's while the API server thinks; whoever asks is not known yet.
constexpr int kMaxReviews = 4;

struct Slot {
  std::atomic<int>& count;
  const bool taken;
  explicit Slot(std::atomic<int>& c) : count(c), taken(c.fetch_add(1) < kMaxReviews) {}
  ~Slot() { --count; }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
};

}  // namespace

bool PodLimits::Take(const std::string& uid, TimePoint now) {
  if (!pods_.contains(uid) && pods_.size() >= kMaxPods) {
    std::erase_if(pods_, [&](const auto& pod) { return now - pod.second.at > kBurst * kRefill; });
    if (pods_.size() >= kMaxPods) return false;
  }
  Allowance& pod = pods_.try_emplace(uid, Allowance{kBurst, now}).first->second;
  const double refilled = std::chrono::duration<double>(now - pod.at) / kRefill;
  pod.left = std::min<double>(kBurst, pod.left + refilled);
  pod.at = now;
  if (pod.left < 1) return false;
  pod.left -= 1;
  return true;
}

http::Response Issuer::Handle(const http::Request& request) {
  const auto issued = Issue(request.body);
  hooks_.on_outcome(issued.ok() ? "signed" : ToString(issued.status().code()));
  if (!issued.ok()) {
    log::Warning("no certificate signed", {{"error", issued.status().ToString()}});
    return http::ErrorResponse(issued.status());
  }
  return http::JsonResponse(json::Dump(ToJson(
      CertificateAnswer{.certificate = issued->certificate, .renew_after = issued->renew_after})));
}

Result<SignedCertificate> Issuer::Issue(const std::string& body) {
  ROUSE_ASSIGN_OR_RETURN(const Json document, json::Parse(body, "request", kMaxBody));
  ROUSE_ASSIGN_OR_RETURN(const CertificateRequest request, CertificateRequestFromJson(document));
  const auto key = tls::KeyOfRequest(request.csr);
  if (!key.ok()) return key.status().WithContext("csr");
  ROUSE_ASSIGN_OR_RETURN(const auto pod, PodOfToken(request.token));
  {
    const std::lock_guard lock(mutex_);
    if (!limits_.Take(pod->uid, std::chrono::steady_clock::now())) {
      return Status(StatusCode::kResourceExhausted,
                    "pod " + pod->ns + "/" + pod->name +
                        " asks for certificates too often: ask again in 10 s");
    }
  }
  tls::Names names{
      .identity = tls::Agent(pod->ns, pod->name, pod->uid), .addresses = {}, .hosts = {}};
  if (!pod->ip.empty()) names.addresses.push_back(pod->ip);
  ROUSE_ASSIGN_OR_RETURN(SignedCertificate made, keeper_.Sign(*key, names));
  log::Info("certificate signed", {{"pod", pod->ns + "/" + pod->name},
                                   {"address", pod->ip},
                                   {"renewAfterSeconds", made.renew_after.count()}});
  return made;
}

Result<std::shared_ptr<const plan::Instance>> Issuer::PodOfToken(const std::string& token) {
  Result<Json> review = Unavailable("too many certificates are asked for at once: ask again");
  if (const Slot slot(reviewing_); slot.taken) review = hooks_.review(TokenReviewOf(token));
  if (!review.ok()) return review.status().WithContext("review the token");
  ROUSE_ASSIGN_OR_RETURN(const TokenPod told, PodOf(*review));
  const std::string key = kube::ObjectName{told.ns, told.name}.Key();
  auto pod = hooks_.pod(key);
  if (pod == nullptr) {
    return Unavailable("pod " + key +
                       " is not known: it is of no ModelService, or was made just now");
  }
  if (pod->uid != told.uid) {
    return PermissionDenied("pod " + key + " has uid " + pod->uid +
                            ", the token is of one with uid " + told.uid);
  }
  if (!hooks_.managed(*pod)) {
    return PermissionDenied("pod " + key + " is not controlled by a ModelService");
  }
  return pod;
}

}  // namespace rouse::trust
