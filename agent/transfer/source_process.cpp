#include "agent/transfer/source_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "agent/transfer/source_wire.h"
#include "common/base64.h"

extern char** environ;

namespace rouse::transfer {
namespace {

constexpr int kChildSocket = 3;
constexpr char kCommand[] = "weight-source";

// An answer, which may be that it failed.
Result<json::Json> ReceiveAnswer(int socket) {
  ROUSE_ASSIGN_OR_RETURN(auto message, WireReceive(socket));
  if (!message) return Unavailable("the weight source process has ended");
  return std::move(message->body);
}

std::string HowItEnded(int status) {
  return WIFSIGNALED(status) ? std::string("signal ") + ::strsignal(WTERMSIG(status))
                             : "exit status " + std::to_string(WEXITSTATUS(status));
}

Result<pid_t> Spawn(const std::string& program, int socket) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, socket, kChildSocket);
  ::posix_spawn_file_actions_addclosefrom_np(&actions, kChildSocket + 1);
  std::string path = program;
  std::string command = kCommand;
  std::array<char*, 3> argv = {path.data(), command.data(), nullptr};
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, path.c_str(), &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return FromErrno(error, "start the weight source process " + program);
  return pid;
}

}  // namespace

bool IsSourceProcess(int argc, char** argv) {
  return argc == 2 && std::strcmp(argv[1], kCommand) == 0;
}

Result<std::unique_ptr<SourceProcess>> SourceProcess::Start(const std::string& program,
                                                            std::chrono::seconds answer_deadline) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return FromErrno(errno, "make a socket pair for the weight source process");
  }
  memory::OwnedFd ours(ends[0]);
  memory::OwnedFd theirs(ends[1]);
  const timeval deadline = {.tv_sec = answer_deadline.count(), .tv_usec = 0};
  ::setsockopt(ours.get(), SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline));
  ROUSE_ASSIGN_OR_RETURN(const pid_t pid, Spawn(program, theirs.get()));
  std::unique_ptr<SourceProcess> process(new SourceProcess(pid, std::move(ours)));
  // Else the child's end stays open here, and its death would go unnoticed.
  ::close(theirs.Release());
  ROUSE_ASSIGN_OR_RETURN(const json::Json hello, ReceiveAnswer(process->socket_.get()));
  ROUSE_RETURN_IF_ERROR(WireStatus(hello));
  json::Reader in(hello, "hello of the weight source process");
  const std::string address = in.String("workerAddress");
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_ASSIGN_OR_RETURN(process->worker_address_, Base64Decode(address, "workerAddress"));
  return process;
}

SourceProcess::~SourceProcess() {
  if (!reaped_) End();
}

// Nothing in it needs an orderly end, and one that hangs must not hold us.
void SourceProcess::End() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  reaped_ = true;
}

Result<json::Json> SourceProcess::Ask(const json::Json& request, int fd) {
  if (reaped_) return Unavailable("the weight source process has ended: " + ended_);
  Status status = WireSend(socket_.get(), request, fd);
  if (status.ok()) {
    auto answer = ReceiveAnswer(socket_.get());
    if (answer.ok()) return answer;
    status = answer.status();
  }
  std::string how;
  if (Alive(&how)) {
    End();
    ended_ = status.message();
  }
  return status;
}

Result<RemoteSlab> SourceProcess::Offer(const memory::Slab& slab) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json answer, Ask({{"bytes", slab.bytes()}}, slab.fd()));
  ROUSE_RETURN_IF_ERROR(WireStatus(answer));
  json::Reader in(answer, "answer of the weight source process");
  const std::string address = in.String("address");
  const std::string rkey = in.String("rkey");
  ROUSE_RETURN_IF_ERROR(in.status());
  RemoteSlab out;
  out.address = std::strtoull(address.c_str(), nullptr, 16);
  out.bytes = slab.bytes();
  ROUSE_ASSIGN_OR_RETURN(out.rkey, Base64Decode(rkey, "rkey"));
  return out;
}

bool SourceProcess::Alive(std::string* why) {
  int status = 0;
  if (!reaped_ && ::waitpid(pid_, &status, WNOHANG) == 0) return true;
  if (!reaped_) ended_ = HowItEnded(status);
  reaped_ = true;
  *why = ended_;
  return false;
}

}  // namespace rouse::transfer
