#include <stdlib.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "common/base64.h"
#include "operator/kube/config.h"
#include "operator/kube/files.h"
#include "operator/kube/token.h"

namespace rouse::kube {
namespace {

namespace fs = std::filesystem;

struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "rouse-test-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(path / name) << content;
    return (path / name).string();
  }
  fs::path path;
};

struct Environment {
  Environment(const char* variable, const char* value) : name(variable) {
    const char* old = std::getenv(name);
    if (old != nullptr) before = old;
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~Environment() { before ? setenv(name, before->c_str(), 1) : unsetenv(name); }
  const char* name;
  std::optional<std::string> before;
};

const std::string kPem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

std::string Kubeconfig(const std::string& cluster, const std::string& user) {
  return "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
         "contexts:\n- name: here\n  context: {cluster: c1, user: u1, namespace: team}\n"
         "- name: other\n  context: {cluster: c2, user: u1}\n"
         "clusters:\n- name: c1\n  cluster: {" +
         cluster +
         "}\n"
         "users:\n- name: u1\n  user: {" +
         user + "}\n";
}

TEST_CASE("a kubeconfig with inline data is read, and its secrets are private and do not stay") {
  const Folder folder;
  const std::string data = Base64Encode(kPem);
  const std::string path = folder.Write(
      "config", Kubeconfig("server: 'https://10.0.0.1:6443/', certificate-authority-data: " + data,
                           "client-certificate-data: " + data + ", client-key-data: " + data));
  std::string ca;
  {
    const auto config = FromKubeconfig(path);
    REQUIRE(config.ok());
    CHECK(config->server == "https://10.0.0.1:6443");
    CHECK(config->ns == "team");
    ca = config->tls.ca_file;
    const Config copy = *config;
    CHECK(*ReadFile(copy.tls.certificate_file) == kPem);
    struct stat info {};
    REQUIRE(stat(config->tls.key_file.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
    REQUIRE(stat(fs::path(ca).parent_path().c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0700);
  }
  CHECK_FALSE(fs::exists(fs::path(ca).parent_path()));
}

TEST_CASE("files in a kubeconfig are relative to it; tokens and token files are taken") {
  const Folder folder;
  folder.Write("ca.pem", kPem);
  const auto config = FromKubeconfig(
      folder.Write("config", Kubeconfig("server: 'https://h', certificate-authority: ca.pem",
                                        "token: abc.def, tokenFile: t/token")));
  REQUIRE(config.ok());
  CHECK(config->tls.ca_file == (folder.path / "ca.pem").string());
  CHECK(config->token == "abc.def");
  CHECK(config->token_file == (folder.path / "t/token").string());
}

TEST_CASE("what is wrong in a kubeconfig is named, with what to do") {
  const Folder folder;
  const auto error = [&folder](const std::string& text, const std::string& context = "") {
    const auto config = FromKubeconfig(folder.Write("config", text), context);
    REQUIRE_FALSE(config.ok());
    return config.status().message();
  };
  using Catch::Contains;
  const std::string server = "server: 'https://h'";
  CHECK_THAT(error(Kubeconfig("server: h:6443", "")), Contains("server must be"));
  CHECK_THAT(error(Kubeconfig("", "")), Contains("cluster \"c1\""));
  CHECK_THAT(error(Kubeconfig(server + ", insecure-skip-tls-verify: true", "")),
             Contains("certificate-authority"));
  CHECK_THAT(error(Kubeconfig(server + ", proxy-url: 'http://p'", "")), Contains("proxy-url"));
  CHECK_THAT(error(Kubeconfig(server, "exec: {command: aws}")), Contains("`exec`"));
  CHECK_THAT(error(Kubeconfig(server, "username: me")), Contains("`username`"));
  CHECK_THAT(error(Kubeconfig(server, "token: 'a b'")), Contains("token"));
  CHECK_THAT(error(Kubeconfig(server, "client-certificate-data: '%%'")),
             Contains("client-certificate-data"));
  CHECK_THAT(error(Kubeconfig(server, "client-certificate-data: " + Base64Encode("no pem"))),
             Contains("PEM"));
  CHECK_THAT(error(Kubeconfig(server, "client-certificate-data: " + Base64Encode(kPem))),
             Contains("client-key"));
  CHECK_THAT(error(Kubeconfig(server + ", certificate-authority: gone.pem", "")),
             Contains("gone.pem"));
  CHECK_THAT(error(Kubeconfig(server, ""), "nowhere"), Contains("\"here\", \"other\""));
  CHECK_THAT(error(Kubeconfig(server, ""), "other"), Contains("\"c2\""));
  CHECK_THAT(error("contexts: []"), Contains("current-context"));
  CHECK_THAT(error("current-context: x\ncontexts: 5"), Contains("no context \"x\""));
  CHECK_THAT(error("current-context: x\ncontexts: [5]"), Contains("list of maps"));
  CHECK_THAT(error("current-context: [x]"), Contains("must be a string"));
  CHECK_THAT(error("just text"), Contains("no kubeconfig"));
  CHECK_THAT(error("a: [unclosed"), Contains("not valid YAML"));
  CHECK(FromKubeconfig("/nonexistent/config").status().code() == StatusCode::kNotFound);
}

TEST_CASE("damaged kubeconfigs are refused, never a crash") {
  const Folder folder;
  const std::string good = Kubeconfig("server: 'https://h'", "token: abc");
  unsigned state = 1;
  const auto random = [&state] { return state = state * 1664525u + 1013904223u, state >> 8; };
  for (int i = 0; i < 400; ++i) {
    std::string text = good;
    for (unsigned n = 1 + random() % 4; n > 0; --n) {
      const std::size_t at = random() % text.size();
      if (random() % 2 == 0) {
        text[at] = "{}[]:&*!-\n\t\xff'\"a"[random() % 15];
      } else {
        text.erase(at, 1 + random() % 10);
      }
    }
    const auto config = FromKubeconfig(folder.Write("config", text));
    if (!config.ok()) REQUIRE_FALSE(config.status().message().empty());
  }
}

TEST_CASE("in-cluster configuration is the pod's service account") {
  const Folder folder;
  folder.Write("token", "abc\n");
  folder.Write("ca.crt", kPem);
  folder.Write("namespace", "prod\n");
  const Environment port("KUBERNETES_SERVICE_PORT", "443");
  {
    const Environment host("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    const auto config = InCluster(folder.path.string());
    REQUIRE(config.ok());
    CHECK(config->server == "https://10.0.0.1:443");
    CHECK(config->ns == "prod");
    CHECK(config->token_file == (folder.path / "token").string());
    CHECK(InCluster("/nonexistent").status().message().find("automountServiceAccountToken") !=
          std::string::npos);
  }
  {
    const Environment host("KUBERNETES_SERVICE_HOST", "fd00::1");
    CHECK(InCluster(folder.path.string())->server == "https://[fd00::1]:443");
  }
  const Environment host("KUBERNETES_SERVICE_HOST", nullptr);
  CHECK(InCluster(folder.path.string()).status().code() == StatusCode::kFailedPrecondition);
}

TEST_CASE("a given path wins over KUBECONFIG, and that over the pod") {
  const Folder folder;
  const std::string a = folder.Write("a", Kubeconfig("server: 'https://a'", ""));
  const std::string b = folder.Write("b", Kubeconfig("server: 'https://b'", ""));
  const Environment variable("KUBECONFIG", ("/nonexistent:" + b + ":" + a).c_str());
  const Environment host("KUBERNETES_SERVICE_HOST", "10.0.0.1");
  CHECK(LoadConfig(a)->server == "https://a");
  CHECK(LoadConfig()->server == "https://b");
  const Environment gone("KUBECONFIG", "/nonexistent");
  CHECK(LoadConfig().status().message().find("/nonexistent") != std::string::npos);
}

TEST_CASE("a rotated token is picked up, whether swapped or written in place") {
  const Folder folder;
  const std::string path = folder.Write("token", "one\n");
  TokenSource source("fixed", path);
  CHECK(*source.Get() == "one");
  CHECK(*source.Get() == "one");
  folder.Write("next", "two");
  fs::rename(folder.path / "next", path);
  CHECK(*source.Get() == "two");
  folder.Write("token", "three");
  CHECK(*source.Get() == "three");
}

TEST_CASE("while a token file is missing or broken the last token is kept") {
  const Folder folder;
  const std::string path = folder.Write("token", "one");
  TokenSource source("", path);
  CHECK(*source.Get() == "one");
  folder.Write("token", "two words\r\nX-Evil: 1");
  CHECK(*source.Get() == "one");
  fs::remove(path);
  CHECK(*source.Get() == "one");
  TokenSource never("", path);
  CHECK(never.Get().status().code() == StatusCode::kNotFound);
  CHECK(TokenSource("fixed", "").Get().ok());
  CHECK((*TokenSource("", "").Get()).empty());
}

}  // namespace
}  // namespace rouse::kube
