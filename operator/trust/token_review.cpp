#include "operator/trust/token_review.h"

#include <algorithm>

#include "common/certificates.h"

namespace rouse::trust {
namespace {

constexpr std::string_view kAccountPrefix = "system:serviceaccount:";

// extra's values are lists, of one each here.
std::string ExtraOf(const Json& user, const char* key) {
  const auto extra = user.find("extra");
  if (extra == user.end() || !extra->is_object()) return "";
  const auto values = extra->find(key);
  if (values == extra->end() || !values->is_array() || values->size() != 1) return "";
  return values->front().is_string() ? values->front().get<std::string>() : "";
}

}  // namespace

Json TokenReviewOf(const std::string& token) {
  return {{"spec", {{"token", token}, {"audiences", {kTokenAudience}}}}};
}

Result<TokenPod> PodOf(const Json& review) {
  json::Reader in(review, "tokenreview");
  const Json& status = in.ObjectOrEmpty("status");
  json::Reader told(status, "tokenreview.status");
  const bool authenticated = told.BoolOr("authenticated", false);
  const std::string error = told.StringOr("error", "");
  const Json& audiences = told.ArrayOrEmpty("audiences");
  const Json& user = told.ObjectOrEmpty("user");
  json::Reader who(user, "tokenreview.status.user");
  const std::string account = who.StringOr("username", "");
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_RETURN_IF_ERROR(told.status());
  ROUSE_RETURN_IF_ERROR(who.status());
  if (!authenticated) {
    return PermissionDenied("the API server does not accept the token for audience \"" +
                            std::string(kTokenAudience) + "\"" +
                            (error.empty() ? "" : ": " + error));
  }
  // A server that knows no audiences answers without: its word is not for this one then.
  if (std::find(audiences.begin(), audiences.end(), kTokenAudience) == audiences.end()) {
    return PermissionDenied("the token is not for audience \"" + std::string(kTokenAudience) +
                            "\": take it from a projected volume that asks for it");
  }
  const std::string name = ExtraOf(user, "authentication.kubernetes.io/pod-name");
  const std::string uid = ExtraOf(user, "authentication.kubernetes.io/pod-uid");
  if (!account.starts_with(kAccountPrefix) || name.empty() || uid.empty()) {
    return PermissionDenied("the token of " + account +
                            " is bound to no pod: take it from a projected volume of the pod");
  }
  const std::string rest = account.substr(kAccountPrefix.size());
  return TokenPod{.ns = rest.substr(0, rest.find(':')), .name = name, .uid = uid};
}

}  // namespace rouse::trust
