// What agents of one node say to each other (docs/protocols.md §6): slabs by descriptor, or a seat
// in a broadcast, for whoever holds a lease. Pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "agent/memory/broadcaster.h"
#include "agent/transfer/broadcast_roster.h"
#include "common/json.h"
#include "common/result.h"

namespace rouse::transfer {

inline constexpr std::string_view kNodeProtocol = "rouse-node";
inline constexpr int kNodeVersion = 1;

/// Slabs [first, first + count) of one rank.
struct NodeRequest {
  std::string lease;
  std::uint32_t rank = 0;
  std::size_t first = 0;
  std::size_t count = 0;  ///< 1 to 64: one message carries no more descriptors.
};

/// The answer's body; the descriptors come beside it.
struct NodeAnswer {
  std::string memory;  ///< "host" or "cuda": what the descriptors are.
};

/// Asks to take part in a broadcast of one rank's arena.
struct NodeJoin {
  std::string lease;
  std::uint32_t rank = 0;
  BroadcastMember member;
};
using NodeJoinAnswer = std::variant<JoinWait, JoinPull, memory::BroadcastSeat>;

using NodeMessage = std::variant<NodeRequest, NodeJoin>;

json::Json ToJson(const NodeRequest& request);
json::Json ToJson(const NodeAnswer& answer);
json::Json ToJson(const NodeJoin& join);
json::Json ToJson(const NodeJoinAnswer& answer);
json::Json NodeError(const Status& status);

/// InvalidArgument names the field; FailedPrecondition for another protocol or version.
Result<NodeMessage> DecodeNodeMessage(std::string_view text);
/// The answer, or the Status that the other side answered with.
Result<NodeAnswer> DecodeNodeAnswer(std::string_view text);
Result<NodeJoinAnswer> DecodeNodeJoinAnswer(std::string_view text);

/// Whether `name` can be the socket of an agent in the node's folder: a file name, nothing else.
bool IsNodeSocketName(std::string_view name);

}  // namespace rouse::transfer
