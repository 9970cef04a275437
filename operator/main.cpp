// rouse-operator: keeps ModelServices running. Its flags: rouse-operator --help.

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "common/http.h"
#include "common/log.h"
#include "common/version.h"
#include "operator/actuate/app.h"

namespace {

using rouse::actuate::App;
using rouse::actuate::AppOptions;
using std::chrono::milliseconds;

// "300ms", "5s", "2m", "1h", "90d".
std::string ParseDuration(const std::string& text, milliseconds* out) {
  long value = 0;
  const auto [unit, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string suffix(unit, text.data() + text.size());
  const long scale = suffix == "ms"  ? 1
                     : suffix == "s" ? 1'000
                     : suffix == "m" ? 60'000
                     : suffix == "h" ? 3'600'000
                     : suffix == "d" ? 86'400'000
                                     : 0;
  if (error != std::errc() || scale == 0 || value <= 0 || value > 86'400'000 / scale * 3'650) {
    return "expected a time such as 500ms, 5s, 2m, 1h or 90d, at most ten years";
  }
  *out = milliseconds(value * scale);
  return "";
}

void AddDuration(CLI::App& cli, const std::string& name, milliseconds& value,
                 const std::string& help) {
  const auto take = [&value](const std::string& text) { return ParseDuration(text, &value); };
  const auto ms = value.count();
  const std::string shown = ms % 86'400'000 == 0 ? std::to_string(ms / 86'400'000) + "d"
                            : ms % 60'000 == 0   ? std::to_string(ms / 60'000) + "m"
                            : ms % 1'000 == 0    ? std::to_string(ms / 1'000) + "s"
                                                 : std::to_string(ms) + "ms";
  cli.add_option_function<std::string>(
         name, [](const std::string&) {}, help)
      ->check(CLI::Validator(take, "TIME"))
      ->default_str(shown);
}

struct Flags {
  std::string kubeconfig;
  std::string context;
  std::string log_level = "info";
  std::string agent_resources;
  milliseconds authority_lifetime{std::chrono::days(90)};
  milliseconds authority_propagation{std::chrono::minutes(5)};
  milliseconds certificate_lifetime{std::chrono::hours(1)};
  AppOptions app;
};

// Instead of running, asks whether an operator does; for `helm test`, whose image has no other
// client. Ends the program.
void CheckUrl(const std::string& url) {
  const std::size_t path = url.find('/', url.find("://") + 3);
  rouse::http::Request request;
  request.target = path == std::string::npos ? "/" : url.substr(path);
  request.timeout = request.deadline = milliseconds(5'000);
  const auto client = rouse::http::Client::Create(url.substr(0, path));
  const auto answer = client.ok() ? (*client)->Send(request) : client.status();
  if (answer.ok() && answer->status == 200) {
    std::cout << url << ": " << answer->body << std::flush;
    throw CLI::Success();
  }
  std::cerr << url << ": "
            << (answer.ok() ? "answers " + std::to_string(answer->status) + ": " + answer->body
                            : answer.status().ToString())
            << std::endl;
  throw CLI::RuntimeError(1);
}

void Declare(CLI::App& cli, Flags& f) {
  using rouse::plan::PodConfig;
  AppOptions& a = f.app;
  PodConfig& pods = a.pods;
  cli.set_version_flag("--version", std::string("rouse-operator ") + rouse::kVersion);
  cli.add_option_function<std::string>("--check-url", CheckUrl,
                                       "Do nothing but ask this URL, for example "
                                       "http://10.96.0.7:7480/readyz; ends with 0 when it "
                                       "answers 200")
      ->trigger_on_parse();
  cli.add_option("--kubeconfig", f.kubeconfig,
                 "Kubeconfig file; default: $KUBECONFIG, else the pod's service account, else "
                 "~/.kube/config");
  cli.add_option("--context", f.context, "Context in it; default: its current-context");
  cli.add_option("--namespace", a.watch_namespace, "Watch this namespace only; default: all");
  cli.add_option("--pod-namespace", a.own_namespace,
                 "Namespace of the Lease and the Service; default: the kubeconfig's")
      ->envname("POD_NAMESPACE");
  cli.add_option("--pod-name", a.own_name, "Who holds the Lease; default: the host's name")
      ->envname("POD_NAME");
  cli.add_option("--pod-ip", a.own_ip,
                 "Where other replicas pass on to this one, while it leads, what agents told them "
                 "of load; default: they do not")
      ->envname("POD_IP");
  cli.add_option("--listen", a.listen_host, "Address to listen on")->capture_default_str();
  cli.add_option("--port", a.port, "Port for /metrics, /healthz and /readyz, plain HTTP")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  cli.add_option("--tls-port", a.tls_port, "Port for agents and other replicas, with mutual TLS")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  cli.add_option("--scaler-port", a.scaler_port,
                 "Port for KEDA's external push scaler protocol (gRPC), open while this replica "
                 "leads; 0: none")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  cli.add_option("--service-name", a.service_name,
                 "The operator's Service, whose ClusterIP agents are told");
  cli.add_option("--agent-facing-url", pods.agent_facing_url,
                 "What agents are told instead, for example https://10.0.0.7:7482");
  cli.add_option("--agent-image", pods.agent_image, "Image of the agent in each pod")
      ->required()
      ->envname("ROUSE_AGENT_IMAGE");
  cli.add_option("--agent-pull-policy", pods.agent_image_pull_policy, "Its pull policy")
      ->check(CLI::IsMember({"Always", "IfNotPresent", "Never"}));
  cli.add_option("--agent-resources", f.agent_resources,
                 "Its resources as JSON; default: none, since the weights it maps count for it");
  cli.add_option("--agent-log-level", pods.agent_log_level, "Its log level")->capture_default_str();
  cli.add_option(
      "--agent-node-folder", pods.agent_node_folder,
      "A folder of every node, writable for the agents (mode 1777), through which those of "
      "one node copy weights directly; default: none");
  cli.add_option("--agent-state-folder", pods.agent_state_folder,
                 "A folder of every node, writable for the agents (mode 1777), in which compile "
                 "caches are kept "
                 "for all instances of the node; default: each instance keeps its own");
  cli.add_option("--agent-state-mib", pods.agent_state_mib,
                 "Most that is kept there, or by each instance, MiB")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  cli.add_option("--gpu-resource", pods.gpu_resources,
                 "An engine that asks for this resource, for example nvidia.com/gpu, has an agent "
                 "that sees all of the node's GPUs; repeatable; default: none");
  cli.add_option("--gpu-runtime-class", pods.gpu_runtime_class,
                 "runtimeClassName of the pods of such engines; default: none");
  cli.add_option("--image-pull-secret", pods.image_pull_secrets, "Given to each pod; repeatable");
  cli.add_option("--workers", a.workers, "ModelServices reconciled at a time")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  AddDuration(cli, "--peer-wait", a.policy.peer_wait,
              "How long replicas wait for a starting instance's weights before they load from "
              "storage themselves (weights.fallback Storage)");
  AddDuration(cli, "--start-deadline", a.policy.start_deadline,
              "An instance that does not serve this long after its node took it has failed");
  cli.add_option("--max-restarts", a.policy.max_restarts,
                 "A container that crash-loops after so many restarts has failed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  AddDuration(cli, "--backoff-first", a.policy.backoff_first,
              "Wait before a replacement after the second failure in a row; doubled each time");
  AddDuration(cli, "--backoff-max", a.policy.backoff_max, "The longest such wait");
  AddDuration(cli, "--wake-retry", a.policy.wake_retry,
              "How long a guard that could not be woken is left alone; the second time it goes");
  AddDuration(cli, "--watch-silence", a.watch_silence,
              "A watch that sends nothing for so long, not even a bookmark, counts as dead");
  cli.add_option("--authorities-secret", a.authorities_secret,
                 "Secret in the operator's namespace that keeps the certificate authorities")
      ->capture_default_str();
  AddDuration(cli, "--authority-lifetime", f.authority_lifetime,
              "How long a certificate authority is good; its successor is made after two thirds");
  AddDuration(
      cli, "--authority-propagation", f.authority_propagation,
      "How long a new authority is only trusted before it signs: until every agent knows it");
  AddDuration(cli, "--certificate-lifetime", f.certificate_lifetime,
              "How long a certificate is good; agents renew theirs after two thirds");
  cli.add_option("--lease-name", a.lease_name, "Lease for leader election")->capture_default_str();
  AddDuration(cli, "--lease-duration", a.lease.duration, "Others wait this long for a dead leader");
  AddDuration(cli, "--lease-renew-deadline", a.lease.renew_deadline,
              "The leader gives up after this long without renewal");
  AddDuration(cli, "--lease-retry", a.lease.retry, "Between renewals");
  cli.add_option("--log-level", f.log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "warning", "error"}))
      ->capture_default_str();
}

// What no flag's own check sees. Empty when all is well.
std::string Check(Flags& f) {
  if (f.app.pods.agent_image.empty()) return "--agent-image: must not be empty";
  if (const std::string& folder = f.app.pods.agent_node_folder;
      !folder.empty() && !folder.starts_with("/")) {
    return "--agent-node-folder: expected an absolute path";
  }
  if (const std::string& folder = f.app.pods.agent_state_folder;
      !folder.empty() && !folder.starts_with("/")) {
    return "--agent-state-folder: expected an absolute path";
  }
  if (f.app.service_name.empty() && f.app.pods.agent_facing_url.empty()) {
    return "--service-name or --agent-facing-url: one of them is needed, or agents could not "
           "report";
  }
  if (!f.app.pods.agent_facing_url.empty() &&
      !f.app.pods.agent_facing_url.starts_with("https://")) {
    return "--agent-facing-url: expected https://ADDRESS:PORT";
  }
  if (!f.agent_resources.empty()) {
    auto parsed = rouse::json::Parse(f.agent_resources, "--agent-resources");
    if (!parsed.ok()) return parsed.status().message();
    if (!parsed->is_object()) return "--agent-resources: expected an object";
    f.app.pods.agent_resources = *std::move(parsed);
  }
  f.app.pods.agent_startup = std::chrono::ceil<std::chrono::seconds>(f.app.policy.start_deadline);
  const auto seconds = [](milliseconds time) {
    return std::chrono::ceil<std::chrono::seconds>(time);
  };
  f.app.trust = {.authority_lifetime = seconds(f.authority_lifetime),
                 .certificate_lifetime = seconds(f.certificate_lifetime),
                 .propagation = seconds(f.authority_propagation)};
  if (const auto trust = rouse::tls::Check(f.app.trust); !trust.ok()) {
    return "--authority-lifetime: " + trust.message();
  }
  const auto lease = rouse::kube::Check(f.app.lease);
  return lease.ok() ? "" : lease.message();
}

rouse::log::Level LogLevel(const std::string& text) {
  if (text == "trace" || text == "debug") return rouse::log::Level::kDebug;
  if (text == "warn" || text == "warning") return rouse::log::Level::kWarning;
  if (text == "error") return rouse::log::Level::kError;
  return rouse::log::Level::kInfo;
}

// Waits for SIGTERM or SIGINT on a thread of its own; all other threads have them blocked.
class SignalWaiter {
 public:
  SignalWaiter(const sigset_t& signals, App& app)
      : thread_([signals, &app] {
          pthread_setname_np(pthread_self(), "signals");
          int signal = 0;
          while (sigwait(&signals, &signal) != 0) {
          }
          rouse::log::Info("stopping", {{"signal", signal}});
          app.Stop();
        }) {}
  ~SignalWaiter() {
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }
  SignalWaiter(const SignalWaiter&) = delete;
  SignalWaiter& operator=(const SignalWaiter&) = delete;

 private:
  std::thread thread_;
};

int Fail(const std::string& why) {
  rouse::log::Error("cannot run", {{"error", why}});
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  // CLI11 would take the next argument as the value of "--flag=".
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--") && argument.ends_with("=")) {
      return Fail(argument + ": a value is missing after '='");
    }
  }
  Flags flags;
  CLI::App cli("Keeps ModelServices running: starts, replaces and stops instances of vLLM.",
               "rouse-operator");
  Declare(cli, flags);
  CLI11_PARSE(cli, argc, argv);
  rouse::log::Init("rouse-operator", LogLevel(flags.log_level));
  if (const std::string why = Check(flags); !why.empty()) return Fail(why);

  // Many threads, each of which allocates little: two arenas instead of one a thread keep what a
  // list of thousands of pods needed for a moment from staying resident many times over.
  mallopt(M_ARENA_MAX, 2);
  rouse::http::SetThreads(24);
  const auto config = rouse::kube::LoadConfig(flags.kubeconfig, flags.context);
  if (!config.ok()) return Fail(config.status().ToString());
  if (flags.app.own_namespace.empty()) flags.app.own_namespace = config->ns;
  if (flags.app.own_name.empty()) {
    char host[256] = {};
    gethostname(host, sizeof host - 1);
    flags.app.own_name = host;
  }
  auto app = App::Create(*config, flags.app);
  if (!app.ok()) return Fail(app.status().ToString());
  rouse::log::Info("running", {{"server", config->server}, {"port", (*app)->port()}});
  rouse::Status ended;
  {
    SignalWaiter waiter(signals, **app);
    ended = (*app)->Run();
  }
  app->reset();
  if (!ended.ok()) return Fail(ended.ToString());
  rouse::log::Info("ended");
  return 0;
}
