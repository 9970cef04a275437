// The source's side within a node: gives the descriptors of published slabs to agents of the same
// node, over a socket in a folder that all of them have (a hostPath).
//
// Targets that start together can ask there for a seat in a broadcast too (broadcast_source.h).
//
// Neither PID nor IPC namespaces need be shared, and a GPU's memory is reached directly. Whoever
// reaches the socket may ask; only who holds a lease, which the HTTP port gives, is answered with
// slabs.
//
// One thread ("node-share") polls all connections; one that sends nonsense, or nothing for too
// long, costs itself and nothing else.

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/memory/owned_fd.h"
#include "agent/transfer/node_protocol.h"
#include "common/result.h"

namespace rouse::transfer {

/// What a request is answered with.
struct SharedSlabs {
  std::string memory;  ///< "host" or "cuda".
  std::vector<memory::OwnedFd> fds;
};

struct NodeShareLimits {
  std::size_t max_connections = 64;
  std::chrono::milliseconds idle_deadline{10'000};  ///< Longest silence of a connection.
};

class NodeShare {
 public:
  /// Called on the thread; must be quick.
  using Slabs = std::function<Result<SharedSlabs>(const NodeRequest&)>;
  using Join = std::function<Result<NodeJoinAnswer>(const NodeJoin&)>;

  /// Listens on `folder`/`name`, where `name` satisfies IsNodeSocketName. A folder that is missing
  /// is NotFound. Without `join` there are no broadcasts here, and who asks for one is told so.
  static Result<std::unique_ptr<NodeShare>> Start(const std::string& folder,
                                                  const std::string& name, Slabs slabs,
                                                  const NodeShareLimits& limits = {},
                                                  Join join = nullptr);
  /// Ends all connections and unlinks the socket.
  ~NodeShare();

  const std::string& name() const { return name_; }

 private:
  class Loop;
  NodeShare(std::string name, std::unique_ptr<Loop> loop);

  const std::string name_;
  std::unique_ptr<Loop> loop_;
};

}  // namespace rouse::transfer
