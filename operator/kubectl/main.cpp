// kubectl-rouse: what Rouse does in a cluster, for people. kubectl runs it as `kubectl rouse` when
// it is on PATH. The shell around operator/kubectl: flags, reading the cluster, writing what the
// pure functions there make of it.

#include <CLI/CLI.hpp>
#include <csignal>
#include <functional>
#include <iostream>

#include "common/log.h"
#include "common/version.h"
#include "operator/kubectl/cluster.h"
#include "operator/kubectl/starts.h"
#include "operator/kubectl/status.h"
#include "operator/kubectl/svg.h"
#include "operator/kubectl/terminal.h"
#include "operator/kubectl/timeline.h"
#include "operator/kubectl/watch.h"

namespace {

using namespace rouse::kubectl;
using rouse::Result;
using rouse::Status;
using rouse::kube::ObjectName;

struct Flags {
  std::string kubeconfig;
  std::string context;
  std::string ns;
  std::string server;
  bool all_namespaces = false;
  bool watch = false;
  std::string output = "text";
  std::string name;
  std::string pod;
};

// What a command is given: the cluster, the flags, and the namespace that they mean.
struct Session {
  const Flags& flags;
  std::string ns;
  rouse::kube::Client& client;
  Cluster cluster;
  Screen screen;
};

TimePoint Now() {
  return std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
}

void Write(const std::string& text) {
  std::cout << text << std::flush;
}

// With everything beyond ASCII escaped: the text of others may reach a terminal so as well.
void Write(const Json& value) {
  Write(value.dump(2, ' ', true, Json::error_handler_t::replace) + "\n");
}

Status NoInstance(const ServiceView& view, const std::string& pod) {
  std::string there;
  for (const auto& instance : view.instances) there += (there.empty() ? "" : ", ") + instance.name;
  return rouse::NotFound("ModelService " + view.Name() + " has no instance " + pod + "; it has " +
                         (there.empty() ? "none" : there));
}

// Those of `pod`, which may be gone by now; of all pods when that is empty.
std::vector<Start> StartsOfPod(const ServiceView& view, const std::string& pod, TimePoint now) {
  std::vector<Start> starts = StartsOf(view, now);
  if (!pod.empty()) std::erase_if(starts, [&](const Start& start) { return start.pod != pod; });
  return starts;
}

std::string ShowTimeline(const ServiceView& view, const std::string& pod, TimePoint now,
                         const Screen& screen) {
  const std::vector<Start> starts = StartsOfPod(view, pod, now);
  return pod.empty() ? TimelineText(view, starts, screen) : TimelineDetail(view, starts, screen);
}

Status RunWatch(
    Session& s,
    const std::function<std::string(const std::vector<ServiceView>&, TimePoint)>& render) {
  if (s.flags.output != "text") {
    return rouse::InvalidArgument("--watch shows text: leave out -o " + s.flags.output);
  }
  if (!s.flags.name.empty()) {
    // Whether it is there at all, and may be read.
    ROUSE_RETURN_IF_ERROR(s.cluster.Service({s.ns, s.flags.name}).status());
  }
  return Watch(s.client, {.ns = s.ns, .name = s.flags.name, .render = render});
}

Status RunStatus(Session& s) {
  if (s.flags.watch) {
    return RunWatch(s, [&](const auto& views, TimePoint now) {
      return StatusText(views, now, ScreenOfOutput());
    });
  }
  std::vector<ServiceView> views;
  if (!s.flags.name.empty()) {
    ROUSE_ASSIGN_OR_RETURN(ServiceView view, s.cluster.Service({s.ns, s.flags.name}));
    views.push_back(std::move(view));
  } else {
    ROUSE_ASSIGN_OR_RETURN(views, s.cluster.Services(s.ns));
  }
  if (s.flags.output == "json") {
    Write(StatusJson(views));
  } else if (views.empty()) {
    std::cerr << "No ModelServices found"
              << (s.ns.empty() ? std::string() : " in namespace " + Printable(s.ns)) << ".\n";
  } else {
    Write(StatusText(views, Now(), s.screen));
  }
  return {};
}

Status RunTimeline(Session& s) {
  const std::string& pod = s.flags.pod;
  if (s.flags.watch) {
    return RunWatch(s, [&](const auto& views, TimePoint now) {
      return ShowTimeline(views.front(), pod, now, ScreenOfOutput());
    });
  }
  ROUSE_ASSIGN_OR_RETURN(const ServiceView view, s.cluster.Service({s.ns, s.flags.name}));
  const TimePoint now = Now();
  const std::vector<Start> starts = StartsOfPod(view, pod, now);
  if (!pod.empty() && starts.empty()) return NoInstance(view, pod);
  if (s.flags.output == "json") {
    Write(ToJson(view, starts));
  } else if (s.flags.output == "svg") {
    Write(TimelineSvg(view, starts));
  } else {
    Write(ShowTimeline(view, pod, now, s.screen));
  }
  return {};
}

using Command = Status (*)(Session&);

CLI::App* Declare(CLI::App& cli, const char* name, const char* help, Command run, Command& chosen) {
  CLI::App* command = cli.add_subcommand(name, help);
  command->fallthrough();
  command->footer("As ever: -n, --context, --kubeconfig; see 'kubectl rouse --help'.");
  command->callback([run, &chosen] { chosen = run; });
  return command;
}

void AddOutput(CLI::App& command, Flags& flags, const std::vector<std::string>& formats) {
  command.add_option("-o,--output", flags.output, "Output format")
      ->check(CLI::IsMember(formats))
      ->capture_default_str();
}

void AddWatch(CLI::App& command, Flags& flags) {
  command.add_flag("-w,--watch", flags.watch, "Show it anew whenever something changes");
}

void DeclareAll(CLI::App& cli, Flags& flags, Command& chosen) {
  cli.set_version_flag("--version", std::string("kubectl-rouse ") + rouse::kVersion);
  cli.require_subcommand(1);
  cli.add_option("--kubeconfig", flags.kubeconfig,
                 "Kubeconfig file; default: $KUBECONFIG, else ~/.kube/config");
  cli.add_option("--context", flags.context, "Context in it; default: its current-context");
  cli.add_option("-s,--server", flags.server,
                 "Address of a `kubectl proxy`, for example http://127.0.0.1:8001, instead of a "
                 "kubeconfig");
  cli.add_option("-n,--namespace", flags.ns, "Namespace; default: the context's");

  CLI::App* status = Declare(cli, "status",
                             "What runs: state, path and seconds to the first token of each "
                             "instance, guards, and conditions that are not as they should be",
                             RunStatus, chosen);
  CLI::Option* one =
      status->add_option("NAME", flags.name, "ModelService; default: all of the namespace");
  status->add_flag("-A,--all-namespaces", flags.all_namespaces, "Those of all namespaces")
      ->excludes(one);
  AddOutput(*status, flags, {"text", "json"});
  AddWatch(*status, flags);

  CLI::App* timeline =
      Declare(cli, "timeline", "Where the time of the last starts and wakes went, as a Gantt chart",
              RunTimeline, chosen);
  timeline->add_option("NAME", flags.name, "ModelService")->required();
  timeline->add_option("POD", flags.pod, "One of its instances, phase by phase");
  AddOutput(*timeline, flags, {"text", "json", "svg"});
  AddWatch(*timeline, flags);
}

// --help and --version end the program too; what is wrong is said as kubectl says it.
int Usage(const CLI::App& cli, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return cli.exit(error);
  std::string command = cli.get_name();
  for (const CLI::App* one : cli.get_subcommands()) command += " " + one->get_name();
  std::cerr << "error: " << Printable(error.what()) << "\nSee '" << command << " --help'.\n";
  return 1;
}

// A kubeconfig's cluster, or what a `kubectl proxy` leads to, which knows who asks.
Result<rouse::kube::Config> ConfigOf(const Flags& flags) {
  if (flags.server.empty()) return rouse::kube::LoadConfig(flags.kubeconfig, flags.context);
  if (!flags.server.starts_with("http://")) {
    return rouse::InvalidArgument(
        "--server: expected the address of a `kubectl proxy`, such as "
        "http://127.0.0.1:8001, got \"" +
        flags.server + "\"");
  }
  rouse::kube::Config config;
  config.server = flags.server;
  while (config.server.ends_with('/')) config.server.pop_back();
  return config;
}

Status Run(const Flags& flags, Command command, Interrupts& interrupts) {
  ROUSE_ASSIGN_OR_RETURN(const auto config, ConfigOf(flags));
  interrupts.RemoveFirst(config.secrets);
  rouse::kube::ClientOptions options;
  options.user_agent = std::string("kubectl-rouse/") + rouse::kVersion;
  ROUSE_ASSIGN_OR_RETURN(const auto client, rouse::kube::Client::Create(config, options));
  std::string ns = flags.ns.empty() ? config.ns : flags.ns;
  if (flags.all_namespaces) ns.clear();
  Session session{flags, std::move(ns), *client, Cluster(*client), ScreenOfOutput()};
  return command(session);
}

}  // namespace

int main(int argc, char** argv) {
  Interrupts interrupts;
  ::signal(SIGPIPE, SIG_IGN);  // `kubectl rouse status | head` ends by failed writes.
  Flags flags;
  Command command = nullptr;
  CLI::App cli("What Rouse does in a cluster.", "kubectl rouse");
  DeclareAll(cli, flags, command);
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return Usage(cli, error);
  }
  rouse::log::Init("kubectl-rouse", rouse::log::Level::kError);
  rouse::http::SetThreads(4);
  if (const Status done = Run(flags, command, interrupts); !done.ok()) {
    std::cerr << "error: " << Printable(done.message()) << "\n";
    return 1;
  }
  return std::cout.good() ? 0 : 1;
}
