// kubectl-rouse: what Rouse does in a cluster, for people. kubectl runs it as `kubectl rouse` when
// it is on PATH. Here are its flags; commands.h has what it does.

#include <CLI/CLI.hpp>
#include <csignal>
#include <iostream>

#include "common/http.h"
#include "common/log.h"
#include "common/version.h"
#include "operator/kubectl/commands.h"
#include "operator/kubectl/terminal.h"

namespace {

using namespace rouse::kubectl;
using rouse::Result;
using rouse::Status;

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

  CLI::App* explain =
      Declare(cli, "explain",
              "Why instances started by the path that they did, the conditions, and the Events",
              RunExplain, chosen);
  explain->add_option("NAME", flags.name, "ModelService")->required();
  explain->add_option("POD", flags.pod, "One of its instances");

  CLI::App* preview =
      Declare(cli, "preview", "What the operator would do at another number of replicas",
              RunPreview, chosen);
  preview->add_option("NAME", flags.name, "ModelService")->required();
  preview->add_option("--replicas", flags.replicas, "That number")
      ->required()
      ->check(CLI::Range(0, 1000));
  AddOutput(*preview, flags, {"text", "json"});

  CLI::App* doctor = Declare(
      cli, "doctor",
      "What is wrong and what to do about it: the definition, the operator, certificates, storage, "
      "agents, network and caches. Ends with status 1 when something does not work",
      RunDoctor, chosen);
  doctor->add_flag("-A,--all-namespaces", flags.all_namespaces,
                   "The ModelServices of all namespaces");
  doctor
      ->add_option("--operator-namespace", flags.operator_namespace,
                   "Where the operator is, for who may not look in all namespaces")
      ->capture_default_str();
  AddOutput(*doctor, flags, {"text", "json"});
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
