// How to reach the API server, and as whom: from a kubeconfig file or from inside a pod.
//
// Inline certificates and keys are written to a folder that only this user may read and that
// lives as long as the last copy of the Config, because the TLS layer wants files.

#pragma once

#include <memory>
#include <string>

#include "common/http.h"
#include "common/result.h"

namespace rouse::kube {

/// A folder (mode 0700) for secrets that must be files; removed with its content on destruction.
class SecretFolder {
 public:
  static Result<std::shared_ptr<SecretFolder>> Make();
  ~SecretFolder();
  SecretFolder(const SecretFolder&) = delete;
  SecretFolder& operator=(const SecretFolder&) = delete;

  /// Writes `content` to a new file (mode 0600) and returns its path.
  Result<std::string> Write(const std::string& name, const std::string& content);

  /// Removes it now, for a process that ends without destructors. Any thread.
  void Remove() const;

 private:
  explicit SecretFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

struct Config {
  std::string server;  ///< "https://10.0.0.1:6443", optionally with a path prefix.
  http::TlsOptions tls;
  std::string token;                      ///< Bearer token; empty: none, or in token_file.
  std::string token_file;                 ///< Read again when it changes; wins over `token`.
  std::string ns = "default";             ///< The context's or the pod's namespace.
  std::shared_ptr<SecretFolder> secrets;  ///< Keeps inline data alive; may be null.
};

/// Reads a kubeconfig file; `context` empty means its current-context. Relative paths in it are
/// relative to its folder. InvalidArgument or NotFound names the file, the field and the remedy;
/// what is not supported (exec plugins, auth providers, basic auth, proxies, skipping TLS
/// verification, another TLS server name) is refused, never ignored.
Result<Config> FromKubeconfig(const std::string& path, const std::string& context = "");

/// The service account of the pod that this process runs in. FailedPrecondition outside of one.
Result<Config> InCluster(
    const std::string& folder = "/var/run/secrets/kubernetes.io/serviceaccount");

/// `path` if given, else $KUBECONFIG (its first file that exists), else in-cluster when
/// KUBERNETES_SERVICE_HOST is set, else ~/.kube/config.
Result<Config> LoadConfig(const std::string& path = "", const std::string& context = "");

}  // namespace rouse::kube
