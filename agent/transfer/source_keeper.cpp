// The keeper's side of source_process.h. One thread and no UCX, so that it can fork at any time.

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "agent/transfer/slab_mappings.h"
#include "agent/transfer/source_process.h"
#include "agent/transfer/source_server.h"
#include "agent/transfer/source_wire.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

constexpr int kSocket = 3;

/// The server that was forked last.
struct Child {
  pid_t pid = -1;
  std::string how_it_ended = "it was not started";

  /// Nothing in it needs an orderly end, and one that hangs must not hold us.
  void End() {
    if (pid < 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    pid = -1;
  }

  bool Alive() {
    int status = 0;
    if (pid < 0) return false;
    if (::waitpid(pid, &status, WNOHANG) == 0) return true;
    pid = -1;
    how_it_ended = WIFSIGNALED(status) ? std::string("signal ") + ::strsignal(WTERMSIG(status))
                                       : "exit status " + std::to_string(WEXITSTATUS(status));
    return false;
  }
};

Result<json::Json> Answer(const WireMessage& request, SlabMappings& mappings, Child& child) {
  json::Reader in(request.body, "request");
  const std::string what = in.String("do");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (what == "hold") {
    const auto bytes = static_cast<std::uint64_t>(in.Int("bytes", 1));
    ROUSE_RETURN_IF_ERROR(in.status());
    ROUSE_RETURN_IF_ERROR(mappings.Map(request.fd.get(), bytes).status());
  } else if (what == "release") {
    mappings.Unmap(in.String("slab"));
    ROUSE_RETURN_IF_ERROR(in.status());
  } else if (what == "end") {
    child.End();
  } else if (what == "look") {
    const bool alive = child.Alive();
    return json::Json{{"alive", alive}, {"how", child.how_it_ended}};
  } else {
    return InvalidArgument("request.do: unknown value \"" + what + "\"");
  }
  return json::Json::object();
}

}  // namespace

int RunSourceProcess() {
  log::Init("rouse-weight-source", log::Level::kInfo);
  ::fcntl(kSocket, F_SETFD, FD_CLOEXEC);
  // UCX may abort the server (source_process.h); a core file would hold all the weights.
  const rlimit no_core = {.rlim_cur = 0, .rlim_max = 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  SlabMappings mappings;
  Child child;
  for (;;) {
    auto request = WireReceive(kSocket);
    if (!request.ok() || !*request) break;  // the agent is gone
    if ((*request)->body.value("do", "") == "serve") {
      child.End();
      child.pid = ::fork();
      if (child.pid == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        ::close(kSocket);
        return ServeWeights(std::move(mappings), (*request)->fd.get());
      }
      const Status forked =
          child.pid > 0 ? Status() : FromErrno(errno, "fork the weight source process");
      if (!WireSend(kSocket, forked.ok() ? json::Json::object() : WireError(forked)).ok()) break;
      continue;
    }
    const auto answer = Answer(**request, mappings, child);
    if (!WireSend(kSocket, answer.ok() ? *answer : WireError(answer.status())).ok()) break;
  }
  child.End();
  return 0;
}

}  // namespace rouse::transfer
