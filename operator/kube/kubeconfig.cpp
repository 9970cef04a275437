#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "common/base64.h"
#include "operator/kube/config.h"
#include "operator/kube/files.h"

namespace rouse::kube {
namespace {

// Reads one kubeconfig. Methods return Status; the first error wins.
class KubeconfigReader {
 public:
  explicit KubeconfigReader(std::string path)
      : path_(std::move(path)), folder_(std::filesystem::path(path_).parent_path()) {}

  Result<Config> Read(const YAML::Node& root, const std::string& wanted_context) {
    if (!root.IsMap()) return Problem("it is no YAML map, so no kubeconfig");
    std::string name = wanted_context;
    if (name.empty())
      ROUSE_RETURN_IF_ERROR(Text(root, "current-context", "current-context", &name));
    if (name.empty()) {
      return Problem("current-context is not set; set it with `kubectl config use-context`");
    }
    const std::string where = "context \"" + name + "\"";
    YAML::Node context, cluster, user;
    ROUSE_RETURN_IF_ERROR(Named(root, "contexts", "context", name, &context));
    std::string cluster_name, user_name, ns;
    ROUSE_RETURN_IF_ERROR(Text(context, "cluster", where + " cluster", &cluster_name));
    ROUSE_RETURN_IF_ERROR(Text(context, "user", where + " user", &user_name));
    ROUSE_RETURN_IF_ERROR(Text(context, "namespace", where + " namespace", &ns));
    if (cluster_name.empty()) return Problem(where + " names no cluster");
    if (!ns.empty()) config_.ns = ns;
    ROUSE_RETURN_IF_ERROR(Named(root, "clusters", "cluster", cluster_name, &cluster));
    ROUSE_RETURN_IF_ERROR(ReadCluster(cluster, "cluster \"" + cluster_name + "\""));
    if (!user_name.empty()) {
      ROUSE_RETURN_IF_ERROR(Named(root, "users", "user", user_name, &user));
      ROUSE_RETURN_IF_ERROR(ReadUser(user, "user \"" + user_name + "\""));
    }
    return config_;
  }

 private:
  Status Problem(const std::string& problem) const {
    return InvalidArgument("kubeconfig " + path_ + ": " + problem);
  }

  // A scalar member; empty when it is missing or null.
  Status Text(const YAML::Node& map, const char* key, const std::string& where,
              std::string* out) const {
    out->clear();
    const YAML::Node node = map[key];
    if (!node || node.IsNull()) return {};
    if (!node.IsScalar()) return Problem(where + " must be a string");
    *out = node.Scalar();
    return {};
  }

  Status Named(const YAML::Node& root, const char* list_name, const char* member,
               const std::string& name, YAML::Node* out) const {
    const YAML::Node list = root[list_name];
    std::string known;
    if (list && list.IsSequence()) {
      for (const YAML::Node& entry : list) {
        if (!entry.IsMap()) return Problem(std::string(list_name) + " must be a list of maps");
        std::string entry_name;
        ROUSE_RETURN_IF_ERROR(Text(entry, "name", std::string(list_name) + " name", &entry_name));
        if (entry_name == name) {
          const YAML::Node value = entry[member];
          if (!value || !value.IsMap()) {
            return Problem(std::string(list_name) + " entry \"" + name + "\" has no map `" +
                           member + "`");
          }
          out->reset(value);
          return {};
        }
        known += (known.empty() ? "\"" : ", \"") + entry_name + "\"";
      }
    }
    return Problem(std::string("no ") + member + " \"" + name + "\" in `" + list_name + "`" +
                   (known.empty() ? std::string(", which has no entries") : "; it has " + known));
  }

  Status ReadCluster(const YAML::Node& cluster, const std::string& where) {
    ROUSE_RETURN_IF_ERROR(Text(cluster, "server", where + " server", &config_.server));
    if (!config_.server.starts_with("https://") && !config_.server.starts_with("http://")) {
      return Problem(where + ": server must be an http:// or https:// URL, got \"" +
                     config_.server + "\"");
    }
    while (config_.server.ends_with('/')) config_.server.pop_back();
    std::string skip;
    ROUSE_RETURN_IF_ERROR(Text(cluster, "insecure-skip-tls-verify", where, &skip));
    if (skip == "true") {
      return Problem(where +
                     " sets insecure-skip-tls-verify, which is not supported; give "
                     "certificate-authority or certificate-authority-data instead");
    }
    for (const char* key : {"proxy-url", "tls-server-name"}) {
      ROUSE_RETURN_IF_ERROR(Refuse(cluster, key, where));
    }
    return FileOrData(cluster, "certificate-authority", "ca.crt", where, &config_.tls.ca_file);
  }

  Status ReadUser(const YAML::Node& user, const std::string& where) {
    for (const char* key : {"exec", "auth-provider", "username", "password", "as"}) {
      ROUSE_RETURN_IF_ERROR(Refuse(user, key, where));
    }
    ROUSE_RETURN_IF_ERROR(Text(user, "token", where + " token", &config_.token));
    if (!config_.token.empty()) {
      ROUSE_ASSIGN_OR_RETURN(config_.token, CheckToken(config_.token, "kubeconfig " + path_ + ": " +
                                                                          where + " token"));
    }
    std::string token_file;
    ROUSE_RETURN_IF_ERROR(Text(user, "tokenFile", where + " tokenFile", &token_file));
    if (!token_file.empty()) config_.token_file = Absolute(token_file);
    ROUSE_RETURN_IF_ERROR(
        FileOrData(user, "client-certificate", "client.crt", where, &config_.tls.certificate_file));
    ROUSE_RETURN_IF_ERROR(
        FileOrData(user, "client-key", "client.key", where, &config_.tls.key_file));
    if (config_.tls.certificate_file.empty() != config_.tls.key_file.empty()) {
      return Problem(where + " must have both client-certificate and client-key, or neither");
    }
    return {};
  }

  Status Refuse(const YAML::Node& map, const char* key, const std::string& where) const {
    const YAML::Node node = map[key];
    if (!node || node.IsNull() || (node.IsScalar() && node.Scalar().empty())) return {};
    return Problem(
        where + " uses `" + key +
        "`, which is not supported; use a token, a tokenFile or a client certificate, and "
        "reach the API server directly");
  }

  // `key` is a path, `key`-data the same inline; inline wins, as in kubectl.
  Status FileOrData(const YAML::Node& map, const std::string& key, const std::string& file_name,
                    const std::string& where, std::string* out) {
    std::string data, file;
    const std::string data_key = key + "-data";
    ROUSE_RETURN_IF_ERROR(Text(map, data_key.c_str(), where + " " + data_key, &data));
    ROUSE_RETURN_IF_ERROR(Text(map, key.c_str(), where + " " + key, &file));
    if (!data.empty()) {
      std::erase_if(data, [](char c) { return c == '\n' || c == '\r' || c == ' ' || c == '\t'; });
      ROUSE_ASSIGN_OR_RETURN(
          const std::string content,
          Base64Decode(data, "kubeconfig " + path_ + ": " + where + " " + data_key));
      if (content.find("-----BEGIN ") == std::string::npos) {
        return Problem(where + " " + data_key + " is no PEM after base64 decoding");
      }
      if (!config_.secrets) {
        ROUSE_ASSIGN_OR_RETURN(config_.secrets, SecretFolder::Make());
      }
      ROUSE_ASSIGN_OR_RETURN(*out, config_.secrets->Write(file_name, content));
      return {};
    }
    if (file.empty()) return {};
    *out = Absolute(file);
    if (const auto content = ReadFile(*out); !content.ok()) {
      return content.status().WithContext("kubeconfig " + path_ + ": " + where + " " + key);
    }
    return {};
  }

  std::string Absolute(const std::string& file) const {
    return std::filesystem::path(file).is_absolute() ? file : (folder_ / file).string();
  }

  const std::string path_;
  const std::filesystem::path folder_;
  Config config_;
};

}  // namespace

Result<Config> FromKubeconfig(const std::string& path, const std::string& context) {
  auto text = ReadFile(path, 4u << 20);
  if (!text.ok()) {
    return text.status().WithContext("kubeconfig (set KUBECONFIG or pass its path)");
  }
  try {
    return KubeconfigReader(path).Read(YAML::Load(*text), context);
  } catch (const std::exception& error) {  // yaml-cpp throws several types, all of them these.
    return InvalidArgument("kubeconfig " + path + ": not valid YAML: " + error.what());
  }
}

}  // namespace rouse::kube
