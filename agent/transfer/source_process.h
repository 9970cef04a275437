// The process that holds a source's weights open for peers: a child of the agent, running the same
// program.
//
// Why a process of its own. Where there is no RDMA hardware UCX answers a peer's read in software,
// and (1.13 to 1.22 at least) aborts the process when the peer dies while answers are queued (fatal
// error in ucp_get_req_handler, assertion in uct_tcp_ep_pending_purge); and it copies from whatever
// address the peer names. Here an abort costs one restart of a process that holds nothing but
// published weights, and there is nothing else to read.
//
// Parent and child speak over one SOCK_SEQPACKET pair, JSON with one descriptor beside it; strict
// request and answer. The child ends when the parent's end closes, however the parent ended.

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
#include "common/result.h"

namespace rouse::transfer {

/// Whether this process was started by SourceProcess: main then returns RunSourceProcess().
bool IsSourceProcess(int argc, char** argv);

/// The child's side. Returns the exit status once the parent is gone.
int RunSourceProcess();

/// The parent's side. Threads: one at a time.
class SourceProcess {
 public:
  /// Starts `program` (which calls IsSourceProcess first in its main) and waits until it can serve.
  /// `answer_deadline` is for each answer: registering with RDMA hardware takes about a second,
  /// nothing else takes long.
  static Result<std::unique_ptr<SourceProcess>> Start(
      const std::string& program, std::chrono::seconds answer_deadline = std::chrono::seconds(60));
  /// Ends the child and waits for it.
  ~SourceProcess();
  SourceProcess(const SourceProcess&) = delete;
  SourceProcess& operator=(const SourceProcess&) = delete;

  /// Maps and registers the slab in the child; it stays so until the child ends. A child that gives
  /// no answer in time, or one that makes no sense, is killed: what it says next would be taken for
  /// the answer to something else.
  Result<RemoteSlab> Offer(const memory::Slab& slab);

  /// The UCX worker address that peers connect to.
  const std::string& worker_address() const { return worker_address_; }
  /// False once the child has ended; `why` says how.
  bool Alive(std::string* why);

 private:
  SourceProcess(pid_t pid, memory::OwnedFd socket) : pid_(pid), socket_(std::move(socket)) {}
  Result<json::Json> Ask(const json::Json& request, int fd);
  void End();

  pid_t pid_;
  bool reaped_ = false;
  std::string ended_;  ///< How, once it was reaped.
  memory::OwnedFd socket_;
  std::string worker_address_;
};

}  // namespace rouse::transfer
