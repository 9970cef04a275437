// rouse-agent: the sidecar beside one engine.

#include <pthread.h>
#include <signal.h>

#include "agent/options.h"
#include "agent/server/agent.h"
#include "agent/transfer/source_process.h"
#include "common/http.h"
#include "common/log.h"

int main(int argc, char** argv) {
  using namespace rouse;
  // The same program holds the weights open for peers, as a child process of its own.
  if (transfer::IsSourceProcess(argc, argv)) return transfer::RunSourceProcess();
  // Before any thread: all of them leave these signals to main.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  signal(SIGPIPE, SIG_IGN);

  auto parsed = agent::ParseOptions(argc, argv);
  if (const int* const status = std::get_if<int>(&parsed)) return *status;
  agent::ProgramOptions& options = std::get<agent::ProgramOptions>(parsed);
  log::Init("rouse-agent", options.log_level);
  http::SetThreads(options.agent.http_threads);

  auto running = agent::Agent::Start(std::move(options.agent));
  if (!running.ok()) {
    log::Error("the agent cannot start", {{"error", running.status().ToString()}});
    return 1;
  }
  log::Info("the agent runs", {{"port", (*running)->port()}});
  int signal_number = 0;
  sigwait(&ends, &signal_number);
  log::Info("the agent ends", {{"signal", signal_number}});
  (*running)->Drain(options.drain);
  return 0;
}
