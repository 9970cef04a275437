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

// `in_step` stays true unless an answer may still come that would be taken for another's.
Result<json::Json> ReceiveAnswer(int socket, bool* in_step) {
  auto message = WireReceive(socket);
  if (!message.ok()) {
    *in_step = false;
    return message.status();
  }
  if (!*message) return Unavailable("the weight source process has ended");
  ROUSE_RETURN_IF_ERROR(WireStatus((*message)->body));
  return std::move((*message)->body);
}

Result<json::Json> Ask(int socket, const json::Json& body, int fd, bool* in_step) {
  ROUSE_RETURN_IF_ERROR(WireSend(socket, body, fd));
  return ReceiveAnswer(socket, in_step);
}

struct Pair {
  memory::OwnedFd ours;
  memory::OwnedFd theirs;
};

Result<Pair> MakePair(std::chrono::seconds answer_deadline) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return FromErrno(errno, "make a socket pair for the weight source process");
  }
  Pair pair{.ours = memory::OwnedFd(ends[0]), .theirs = memory::OwnedFd(ends[1])};
  const timeval deadline = {.tv_sec = answer_deadline.count(), .tv_usec = 0};
  ::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline));
  return pair;
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
  ROUSE_ASSIGN_OR_RETURN(Pair pair, MakePair(answer_deadline));
  ROUSE_ASSIGN_OR_RETURN(const pid_t pid, Spawn(program, pair.theirs.get()));
  return std::unique_ptr<SourceProcess>(
      new SourceProcess(pid, std::move(pair.ours), answer_deadline));
}

SourceProcess::~SourceProcess() {
  End();
  EndKeeper();
}

// Nothing in it needs an orderly end, and one that hangs must not hold us. The server goes with it.
void SourceProcess::EndKeeper() {
  server_ = memory::OwnedFd();
  if (keeper_ < 0) return;
  ::kill(keeper_, SIGKILL);
  ::waitpid(keeper_, nullptr, 0);
  keeper_ = -1;
}

Result<json::Json> SourceProcess::AskKeeper(const json::Json& request, int fd) {
  if (keeper_ < 0) return Unavailable("the keeper of weights has ended: " + ended_);
  bool in_step = true;
  auto answer = Ask(keeper_socket_.get(), request, fd, &in_step);
  if (!in_step) {
    EndKeeper();
    ended_ = answer.status().message();
  }
  return answer;
}

Result<json::Json> SourceProcess::AskServer(const json::Json& request, int fd) {
  if (!serving()) return Unavailable("the weight source process has ended: " + ended_);
  bool in_step = true;
  auto answer = Ask(server_.get(), request, fd, &in_step);
  if (!in_step) {
    End();
    ended_ = answer.status().message();
  }
  return answer;
}

Status SourceProcess::Serve() {
  End();
  ROUSE_ASSIGN_OR_RETURN(Pair pair, MakePair(answer_deadline_));
  ROUSE_RETURN_IF_ERROR(AskKeeper({{"do", "serve"}}, pair.theirs.get()).status());
  // Else the server's end stays open here, and its death would go unnoticed.
  pair.theirs = memory::OwnedFd();
  bool in_step = true;  // of no matter: the socket goes with a failure
  ROUSE_ASSIGN_OR_RETURN(const json::Json hello, ReceiveAnswer(pair.ours.get(), &in_step));
  json::Reader in(hello, "hello of the weight source process");
  const std::string address = in.String("workerAddress");
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_ASSIGN_OR_RETURN(worker_address_, Base64Decode(address, "workerAddress"));
  server_ = std::move(pair.ours);
  ended_.clear();
  return {};
}

void SourceProcess::End() {
  if (!serving()) return;
  server_ = memory::OwnedFd();
  static_cast<void>(AskKeeper({{"do", "end"}}).ok());
}

Status SourceProcess::Hold(const memory::Slab& slab) {
  ROUSE_RETURN_IF_ERROR(AskKeeper({{"do", "hold"}, {"bytes", slab.bytes()}}, slab.fd()).status());
  if (!serving()) return {};
  return AskServer({{"offer", false}, {"bytes", slab.bytes()}}, slab.fd()).status();
}

Status SourceProcess::Release(const std::string& key) {
  ROUSE_RETURN_IF_ERROR(AskKeeper({{"do", "release"}, {"slab", key}}).status());
  if (!serving()) return {};
  return AskServer({{"release", key}}, -1).status();
}

Result<RemoteSlab> SourceProcess::Offer(const memory::Slab& slab) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json answer,
                         AskServer({{"offer", true}, {"bytes", slab.bytes()}}, slab.fd()));
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

bool SourceProcess::KeeperAlive() {
  return AskKeeper({{"do", "look"}}).ok();
}

bool SourceProcess::Alive(std::string* why) {
  if (!serving() && !ended_.empty()) {
    *why = ended_;
    return false;
  }
  const auto answer = AskKeeper({{"do", "look"}});
  if (!answer.ok()) {
    *why = "its keeper: " + answer.status().message();
    return false;
  }
  *why = answer->value("how", "");
  return serving() && answer->value("alive", false);
}

}  // namespace rouse::transfer
