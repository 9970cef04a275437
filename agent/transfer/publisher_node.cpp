// What a publisher gives agents of its node: slabs by descriptor, seats in broadcasts.

#include <algorithm>
#include <chrono>

#include "agent/transfer/publisher.h"

namespace rouse::transfer {

// Requires mutex_. What an agent of this node asks for, of which nothing is missing.
Result<Publisher::Published*> Publisher::Whole(const std::string& lease, std::uint32_t rank) {
  ROUSE_RETURN_IF_ERROR(leases_.Renew(lease, std::chrono::steady_clock::now()));
  const auto it = published_.find(rank);
  if (it == published_.end()) {
    return NotFound("rank " + std::to_string(rank) + " is not published");
  }
  if (it->second.available != nullptr) {
    return Unavailable("rank " + std::to_string(rank) + " is still arriving");
  }
  return &it->second;
}

// On the thread of node_share_.
Result<NodeJoinAnswer> Publisher::Join(const NodeJoin& join) {
  const std::lock_guard lock(mutex_);
  ROUSE_ASSIGN_OR_RETURN(Published* const rank, Whole(join.lease, join.rank));
  if (rank->broadcasts == nullptr) {
    const std::string gpu = rank->arena->memory().gpu();
    ROUSE_ASSIGN_OR_RETURN(auto broadcaster, options_.broadcasting->On(gpu));
    memory::BroadcastDomain domain = options_.broadcasting->Domain();
    RosterOptions roster = options_.roster;
    // One of its GPUs is ours.
    if (domain.gpus > 0) roster.max_targets = std::min(roster.max_targets, domain.gpus - 1);
    rank->broadcasts = std::make_unique<BroadcastSource>(
        rank->arena, join.rank, std::move(broadcaster),
        BroadcastSourceOptions{
            .self = {std::move(domain.name), gpu}, .roster = roster, .broadcast = {}});
  }
  return rank->broadcasts->Join(join);
}

// On the thread of node_share_.
Result<SharedSlabs> Publisher::Share(const NodeRequest& request) {
  const std::lock_guard lock(mutex_);
  ROUSE_ASSIGN_OR_RETURN(const Published* const rank, Whole(request.lease, request.rank));
  const memory::Arena& arena = *rank->arena;
  if (request.first >= arena.slab_count() || request.count > arena.slab_count() - request.first) {
    return InvalidArgument("request.first: slabs " + std::to_string(request.first) + " and " +
                           std::to_string(request.count - 1) + " more were asked for, rank " +
                           std::to_string(request.rank) + " has " +
                           std::to_string(arena.slab_count()));
  }
  SharedSlabs slabs{.memory = arena.memory().on_host() ? "host" : "cuda", .fds = {}};
  for (std::size_t i = 0; i < request.count; ++i) {
    ROUSE_ASSIGN_OR_RETURN(auto fd, arena.slab(request.first + i).DuplicateFd());
    slabs.fds.push_back(std::move(fd));
  }
  return slabs;
}

}  // namespace rouse::transfer
