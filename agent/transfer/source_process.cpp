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
// Registering with RDMA hardware takes about a second; nothing else takes long.
constexpr timeval kAnswerDeadline = {.tv_sec = 60, .tv_usec = 0};

Result<json::Json> ReceiveAnswer(int socket) {
  ROUSE_ASSIGN_OR_RETURN(auto message, WireReceive(socket));
  if (!message) return Unavailable("the weight source process has ended");
  ROUSE_RETURN_IF_ERROR(WireStatus(message->body));
  return std::move(message->body);
}

Result<json::Json> Ask(int socket, const json::Json& body, int fd = -1) {
  ROUSE_RETURN_IF_ERROR(WireSend(socket, body, fd));
  return ReceiveAnswer(socket);
}

struct Pair {
  memory::OwnedFd ours;
  memory::OwnedFd theirs;
};

Result<Pair> MakePair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return FromErrno(errno, "make a socket pair for the weight source process");
  }
  Pair pair{.ours = memory::OwnedFd(ends[0]), .theirs = memory::OwnedFd(ends[1])};
  ::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &kAnswerDeadline, sizeof(kAnswerDeadline));
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

Result<std::unique_ptr<SourceProcess>> SourceProcess::Start(const std::string& program) {
  ROUSE_ASSIGN_OR_RETURN(Pair pair, MakePair());
  ROUSE_ASSIGN_OR_RETURN(const pid_t pid, Spawn(program, pair.theirs.get()));
  return std::unique_ptr<SourceProcess>(new SourceProcess(pid, std::move(pair.ours)));
}

SourceProcess::~SourceProcess() {
  End();
  ::kill(keeper_, SIGKILL);
  ::waitpid(keeper_, nullptr, 0);
}

Status SourceProcess::Serve() {
  End();
  ROUSE_ASSIGN_OR_RETURN(Pair pair, MakePair());
  ROUSE_RETURN_IF_ERROR(Ask(keeper_socket_.get(), {{"do", "serve"}}, pair.theirs.get()).status());
  // Else the server's end stays open here, and its death would go unnoticed.
  pair.theirs = memory::OwnedFd();
  ROUSE_ASSIGN_OR_RETURN(const json::Json hello, ReceiveAnswer(pair.ours.get()));
  json::Reader in(hello, "hello of the weight source process");
  const std::string address = in.String("workerAddress");
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_ASSIGN_OR_RETURN(worker_address_, Base64Decode(address, "workerAddress"));
  server_ = std::move(pair.ours);
  return {};
}

void SourceProcess::End() {
  if (!serving()) return;
  server_ = memory::OwnedFd();
  static_cast<void>(Ask(keeper_socket_.get(), {{"do", "end"}}).ok());
}

Status SourceProcess::Hold(const memory::Slab& slab) {
  ROUSE_RETURN_IF_ERROR(
      Ask(keeper_socket_.get(), {{"do", "hold"}, {"bytes", slab.bytes()}}, slab.fd()).status());
  if (!serving()) return {};
  return Ask(server_.get(), {{"offer", false}, {"bytes", slab.bytes()}}, slab.fd()).status();
}

Status SourceProcess::Release(const std::string& key) {
  ROUSE_RETURN_IF_ERROR(Ask(keeper_socket_.get(), {{"do", "release"}, {"slab", key}}).status());
  if (!serving()) return {};
  return Ask(server_.get(), {{"release", key}}).status();
}

Result<RemoteSlab> SourceProcess::Offer(const memory::Slab& slab) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json answer,
                         Ask(server_.get(), {{"offer", true}, {"bytes", slab.bytes()}}, slab.fd()));
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
  return Ask(keeper_socket_.get(), {{"do", "look"}}).ok();
}

bool SourceProcess::Alive(std::string* why) {
  const auto answer = Ask(keeper_socket_.get(), {{"do", "look"}});
  if (!answer.ok()) {
    *why = "its keeper: " + answer.status().message();
    return false;
  }
  *why = answer->value("how", "");
  return serving() && answer->value("alive", false);
}

}  // namespace rouse::transfer
