#include "common/tls/identity.h"

#include <algorithm>
#include <vector>

namespace rouse::tls {
namespace {

constexpr std::string_view kDomain = "spiffe://rouse.dev/";
/// The longest name of a Kubernetes object.
constexpr std::size_t kMaxName = 253;

// Names of pods and namespaces, and uids, are of these characters only.
bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= kMaxName && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
         });
}

std::vector<std::string_view> Split(std::string_view path) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto slash = path.find('/');
    parts.push_back(path.substr(0, slash));
    if (slash == std::string_view::npos) return parts;
    path.remove_prefix(slash + 1);
  }
}

}  // namespace

std::string ToUri(const Identity& identity) {
  const std::string domain(kDomain);
  if (identity.kind == Identity::Kind::kOperator) return domain + "operator";
  return domain + "ns/" + identity.pod_namespace + "/pod/" + identity.pod + "/uid/" +
         identity.pod_uid;
}

Result<Identity> IdentityFromUri(std::string_view uri) {
  const Status refusal =
      InvalidArgument("the certificate's URI \"" + std::string(uri.substr(0, 1'024)) +
                      "\" names neither the operator nor an agent of Rouse");
  if (!uri.starts_with(kDomain)) return refusal;
  const auto parts = Split(uri.substr(kDomain.size()));
  if (parts.size() == 1 && parts[0] == "operator") return Operator();
  if (parts.size() != 6 || parts[0] != "ns" || parts[2] != "pod" || parts[4] != "uid" ||
      !IsName(parts[1]) || !IsName(parts[3]) || !IsName(parts[5])) {
    return refusal;
  }
  return Agent(std::string(parts[1]), std::string(parts[3]), std::string(parts[5]));
}

std::string Describe(const Identity& identity) {
  if (identity.kind == Identity::Kind::kOperator) return "the operator";
  if (identity.pod.empty()) return "an agent of namespace " + identity.pod_namespace;
  return "the agent of pod " + identity.pod_namespace + "/" + identity.pod;
}

bool Matches(const Identity& expected, const Identity& found) {
  const auto fits = [](const std::string& wanted, const std::string& is) {
    return wanted.empty() || wanted == is;
  };
  return expected.kind == found.kind && fits(expected.pod_namespace, found.pod_namespace) &&
         fits(expected.pod, found.pod) && fits(expected.pod_uid, found.pod_uid);
}

}  // namespace rouse::tls
