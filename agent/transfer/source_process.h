// The processes that hold a source's weights open for peers: children of the agent, running the
// same program.
//
//   agent ── keeper (one thread, no UCX: has every slab mapped)
//               └── server (UCX: registers the slabs and serves them), forked by the keeper
//
// Why a process of its own. Where there is no RDMA hardware UCX answers a peer's read in software,
// and (1.13 to 1.22 at least) aborts the process when the peer dies while answers are queued (fatal
// error in ucp_get_req_handler, assertion in uct_tcp_ep_pending_purge), or when soft-RoCE's link
// goes down; and it copies from whatever address the peer names. Here an abort costs one restart of
// a process that holds nothing but published weights, and there is nothing else to read.
//
// Why a keeper. An RDMA device registers only memory that is mapped to be written, and once a slab
// is sealed nobody can map it so any more. A server that is started in place of a dead one
// inherits the keeper's mappings, which were made before.
//
// All speak over SOCK_SEQPACKET pairs, JSON with one descriptor beside it; strict request and
// answer. Keeper and server end when the agent's ends close, however the agent ended.

#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "agent/memory/owned_fd.h"
#include "agent/memory/slab.h"
#include "common/json.h"
#include "common/messages.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// Whether this process was started by SourceProcess: main then returns RunSourceProcess().
bool IsSourceProcess(int argc, char** argv);

/// The child's side. Returns the exit status once the parent is gone.
int RunSourceProcess();

/// The parent's side. Threads: one at a time.
class SourceProcess {
 public:
  /// Starts `program` (which calls IsSourceProcess first in its main) as keeper. `answer_deadline`
  /// is for each answer: registering with RDMA hardware takes about a second, nothing else takes
  /// long. A child that gives no answer in time, or one that makes no sense, is killed: what it
  /// says next would be taken for the answer to something else.
  static Result<std::unique_ptr<SourceProcess>> Start(
      const std::string& program, std::chrono::seconds answer_deadline = std::chrono::seconds(60));
  /// Ends both and waits for them.
  ~SourceProcess();
  SourceProcess(const SourceProcess&) = delete;
  SourceProcess& operator=(const SourceProcess&) = delete;

  /// Starts a server, in place of the one before, and waits until it can serve.
  Status Serve();
  /// Ends the server: nothing that it was offered can be read any more.
  void End();

  /// Has the slab mapped from now on, by the keeper and by servers. To be called before it is
  /// sealed; one that is sealed can be offered too, but over RDMA only when it was held before.
  Status Hold(const memory::Slab& slab);
  /// Gives a slab's memory back once no server has it to offer; `key` is SlabKey's.
  Status Release(const std::string& key);
  /// Registers the slab in the server; it stays so until the server ends.
  Result<RemoteSlab> Offer(const memory::Slab& slab);

  /// The UCX worker address that peers connect to.
  const std::string& worker_address() const { return worker_address_; }
  /// Whether Serve was called, and End was not, since.
  bool serving() const { return server_.valid(); }
  bool KeeperAlive();
  /// False unless keeper and server live; `why` says how they ended.
  bool Alive(std::string* why);

 private:
  SourceProcess(pid_t keeper, memory::OwnedFd socket, std::chrono::seconds answer_deadline)
      : answer_deadline_(answer_deadline), keeper_(keeper), keeper_socket_(std::move(socket)) {}
  Result<json::Json> AskKeeper(const json::Json& request, int fd = -1);
  Result<json::Json> AskServer(const json::Json& request, int fd);
  void EndKeeper();

  const std::chrono::seconds answer_deadline_;
  pid_t keeper_;  ///< -1 once it was ended.
  memory::OwnedFd keeper_socket_;
  memory::OwnedFd server_;  ///< The socket to it; none while there is no server.
  std::string ended_;       ///< Why a child was killed last.
  std::string worker_address_;
};

}  // namespace rouse::transfer
