#include "agent/transfer/node_share.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "agent/socket/seqpacket.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

using Clock = std::chrono::steady_clock;
using memory::OwnedFd;

struct Connection {
  OwnedFd socket;
  Clock::time_point heard;
};

}  // namespace

class NodeShare::Loop {
 public:
  Loop(agent::SeqpacketListener listener, OwnedFd wake, Slabs slabs, Join join,
       const NodeShareLimits& limits)
      : listener_(std::move(listener)),
        wake_(std::move(wake)),
        slabs_(std::move(slabs)),
        join_(std::move(join)),
        limits_(limits),
        thread_([this] {
          ::pthread_setname_np(::pthread_self(), "node-share");
          while (!stop_) Once();
        }) {}

  ~Loop() {
    stop_ = true;
    ::eventfd_write(wake_.get(), 1);
    thread_.join();
  }

 private:
  void Once() {
    std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      polled.push_back({connection.socket.get(), POLLIN, 0});
    }
    ::poll(polled.data(), polled.size(), 1'000);
    if (stop_) return;
    const Clock::time_point now = Clock::now();
    std::size_t index = 2;
    std::erase_if(connections_, [&](Connection& connection) {
      const bool readable = polled[index++].revents != 0;
      if (!readable) return now - connection.heard > limits_.idle_deadline;
      connection.heard = now;
      return !Answer(connection.socket.get());
    });
    if (polled[1].revents != 0) Accept(now);
  }

  void Accept(Clock::time_point now) {
    auto accepted = listener_.Accept();
    if (!accepted.ok()) {
      log::Warning("agent of this node not accepted", {{"error", accepted.status().ToString()}});
      return;
    }
    if (!accepted->valid()) return;
    if (connections_.size() >= limits_.max_connections) return;  // closed: it asks over the network
    connections_.push_back({*std::move(accepted), now});
  }

  // False when the connection is to be closed.
  bool Answer(int socket) {
    auto received = agent::SeqpacketReceive(socket);
    if (!received.ok()) return false;
    if (!*received) return true;
    if ((*received)->oversized || !(*received)->fds.empty()) return false;
    const auto message = DecodeNodeMessage((*received)->body);
    if (!message.ok()) {
      Send(socket, NodeError(message.status()), {});
      return false;
    }
    if (const auto* join = std::get_if<NodeJoin>(&*message)) return AnswerJoin(socket, *join);
    const auto slabs = slabs_(std::get<NodeRequest>(*message));
    if (!slabs.ok()) return Send(socket, NodeError(slabs.status()), {});
    std::vector<int> fds;
    for (const OwnedFd& fd : slabs->fds) fds.push_back(fd.get());
    return Send(socket, ToJson(NodeAnswer{slabs->memory}), fds);
  }

  bool AnswerJoin(int socket, const NodeJoin& join) {
    const auto answer = join_ != nullptr
                            ? join_(join)
                            : FailedPrecondition("there are no broadcasts from this agent");
    return Send(socket, answer.ok() ? ToJson(*answer) : NodeError(answer.status()), {});
  }

  // One that does not read its answers is closed.
  static bool Send(int socket, const json::Json& body, const std::vector<int>& fds) {
    const auto sent = agent::SeqpacketSend(socket, json::Dump(body), fds);
    return sent.ok() && *sent;
  }

  agent::SeqpacketListener listener_;
  const OwnedFd wake_;
  const Slabs slabs_;
  const Join join_;
  const NodeShareLimits limits_;
  std::vector<Connection> connections_;  // the thread's own
  std::atomic<bool> stop_{false};
  std::thread thread_;  // last: it uses all of the above
};

NodeShare::NodeShare(std::string name, std::unique_ptr<Loop> loop)
    : name_(std::move(name)), loop_(std::move(loop)) {}

NodeShare::~NodeShare() = default;

Result<std::unique_ptr<NodeShare>> NodeShare::Start(const std::string& folder,
                                                    const std::string& name, Slabs slabs,
                                                    const NodeShareLimits& limits, Join join) {
  if (!IsNodeSocketName(name)) {
    return InvalidArgument("\"" + name + "\" cannot be the name of a socket in " + folder);
  }
  struct stat info {};
  if (::stat(folder.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return NotFound("there is no folder " + folder + " for the agents of this node: mount it");
  }
  OwnedFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return FromErrno(errno, "make an event descriptor");
  auto listener = agent::SeqpacketListener::Listen(folder + "/" + name);
  if (!listener.ok()) {
    return listener.status().WithContext(
        "folder of this node (agents must be able to write to it)");
  }
  auto loop = std::make_unique<Loop>(*std::move(listener), std::move(wake), std::move(slabs),
                                     std::move(join), limits);
  return std::unique_ptr<NodeShare>(new NodeShare(name, std::move(loop)));
}

}  // namespace rouse::transfer
