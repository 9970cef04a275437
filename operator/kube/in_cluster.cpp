#include <cstdlib>
#include <filesystem>

#include "common/host_in_url.h"
#include "operator/kube/config.h"
#include "operator/kube/files.h"

namespace rouse::kube {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : value;
}

}  // namespace

Result<Config> InCluster(const std::string& folder) {
  const std::string host = Environment("KUBERNETES_SERVICE_HOST");
  const std::string port = Environment("KUBERNETES_SERVICE_PORT");
  if (host.empty() || port.empty()) {
    return FailedPrecondition(
        "in-cluster configuration: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not "
        "set; "
        "this process does not run in a pod, give it a kubeconfig");
  }
  Config config;
  config.server = "https://" + HostInUrl(host) + ":" + port;
  config.token_file = folder + "/token";
  config.tls.ca_file = folder + "/ca.crt";
  const std::string remedy =
      "; in-cluster configuration needs a mounted service account token: check that the pod does "
      "not "
      "set automountServiceAccountToken to false";
  auto token = ReadFile(config.token_file);
  if (!token.ok()) return FailedPrecondition(token.status().message() + remedy);
  if (auto checked = CheckToken(*std::move(token), "token file " + config.token_file);
      !checked.ok()) {
    return checked.status();
  }
  if (auto ca = ReadFile(config.tls.ca_file); !ca.ok()) {
    return FailedPrecondition(ca.status().message() + remedy);
  }
  if (auto ns = ReadFile(folder + "/namespace"); ns.ok() && !ns->empty()) config.ns = *ns;
  while (!config.ns.empty() && config.ns.back() == '\n') config.ns.pop_back();
  return config;
}

Result<Config> LoadConfig(const std::string& path, const std::string& context) {
  if (!path.empty()) return FromKubeconfig(path, context);
  std::string list = Environment("KUBECONFIG");
  std::string first;
  while (!list.empty()) {
    const auto colon = list.find(':');
    const std::string one = list.substr(0, colon);
    list = colon == std::string::npos ? std::string() : list.substr(colon + 1);
    if (one.empty()) continue;
    if (first.empty()) first = one;
    std::error_code ignored;
    if (std::filesystem::exists(one, ignored)) return FromKubeconfig(one, context);
  }
  if (!first.empty()) return FromKubeconfig(first, context);  // Says that it is not there.
  if (!Environment("KUBERNETES_SERVICE_HOST").empty()) return InCluster();
  const std::string home = Environment("HOME");
  return FromKubeconfig((home.empty() ? "/root" : home) + "/.kube/config", context);
}

}  // namespace rouse::kube
