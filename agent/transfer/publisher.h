// The source's side of a pull: hands out what peers need to read our arenas one-sidedly.
//
//   auto publisher = Publisher::Create({});
//   publisher->Hold(arena);                                          // before it is sealed
//   publisher->Publish(arena, manifest_with_digests);                // once for each rank
//   OpenResponse answer = *publisher->Open("default/demo-1", true);  // POST /v1/weights/open
//
// An arena that still arrives is published with the bitmap of what has been verified, which peers
// read one-sidedly; Complete says when it has all arrived.
//
// A published arena stays mapped and registered, in a process of its own (source_process.h says
// why), while it is published or a lease lives. When that process dies it is started again by the
// next Open or Expire; pulls under way fail then, and their targets open anew. HTTP is the
// caller's.
//
// Targets of one node that start together may get one broadcast instead (broadcast_source.h). One
// that is under way when everything is withdrawn goes on as pulls do: until no lease lives.
//
// Threads: every method from any thread; they may take some milliseconds, a restart a second.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/memory/broadcaster.h"
#include "agent/transfer/availability.h"
#include "agent/transfer/broadcast_source.h"
#include "agent/transfer/lease_table.h"
#include "agent/transfer/node_share.h"
#include "agent/transfer/source_process.h"
#include "agent/transfer/staging.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

struct PublisherOptions {
  LeaseLimits leases;
  /// The program to run as source process: one whose main asks IsSourceProcess first.
  std::string program = "/proc/self/exe";
  /// The folder that all agents of this node have, and our socket's name in it (node_share.h).
  /// Empty: there is none. One that cannot be used is logged, and peers come over the network.
  std::string node_folder;
  std::string node_socket;
  /// What peers of other nodes read weights in GPU memory through (staging.h): bytes of a buffer,
  /// and for how many peers at once. 0: not at all.
  std::uint64_t stage_bytes = std::uint64_t{128} << 20;
  std::size_t max_staged = 4;
  /// Null: no broadcasts from here. `roster` is for a node of any size.
  std::shared_ptr<memory::Broadcasting> broadcasting;
  RosterOptions roster;
};

class Publisher {
 public:
  /// Starts the source process.
  static Result<std::unique_ptr<Publisher>> Create(const PublisherOptions& options);

  /// Has an arena mapped for peers before it is sealed: over RDMA it cannot be served otherwise
  /// (source_process.h). Publish does this for one that is not sealed yet. The memory is given back
  /// some seconds after the last owner of the arena and the last lease on it have gone.
  Status Hold(const std::shared_ptr<memory::Arena>& arena);

  /// Offers one rank's arena. One in GPU memory is offered without keys (InGpuMemory of source.h):
  /// by descriptor within the node, through Stage to others. The manifest must describe it and
  /// bring the digest of every chunk (InvalidArgument). AlreadyExists when this rank is published.
  /// The arena is sealed if it is not yet. `available` is given while chunks are missing.
  Status Publish(std::shared_ptr<memory::Arena> arena, WeightManifest manifest,
                 std::shared_ptr<Availability> available = nullptr);

  /// From now on every rank is offered as complete. Who has opened one before goes on to read its
  /// bitmap, which is full.
  void Complete();

  /// Stops offering anything. The arenas stay readable until the last lease has ended.
  void Withdraw();

  /// Ends every lease, whoever reads under it: after Withdraw no memory is kept for peers any more.
  /// How many still lived.
  std::size_t Revoke();

  /// Everything that is published, under a new lease. Unavailable when that is nothing, or when
  /// some of it still arrives and not `partial` too may be answered; ResourceExhausted when too
  /// many leases are open. Whether all ranks are there, and whether the requester may have them, is
  /// for the caller to check first.
  Result<OpenResponse> Open(const std::string& requester, bool partial = false);
  /// Copies a part of a rank in GPU memory to where a peer of another node can read it; renews the
  /// lease. Takes as long as the copy. NotFound when the lease has ended; FailedPrecondition for a
  /// rank that needs no copies; Unavailable while the same buffer is being filled;
  /// ResourceExhausted when as many other peers as may have buffers.
  Result<RemoteSlab> Stage(const StageRequest& request);
  /// NotFound when the lease has ended: open again.
  Status Renew(const std::string& lease);
  Status Close(const std::string& lease);
  /// Drops leases that have ended and withdrawn arenas that no lease needs any more, and starts the
  /// source process again if it died. Open does this too; call it every few seconds for when nobody
  /// asks.
  void Expire();

  /// Live leases; published ranks.
  std::size_t lease_count() const;
  std::size_t rank_count() const;

 private:
  struct Published {
    std::shared_ptr<memory::Arena> arena;
    std::shared_ptr<Availability> available;      // none: complete
    RemoteRank description;                       // its slabs belong to process_
    std::unique_ptr<BroadcastSource> broadcasts;  // none: nobody has asked for one
  };
  /// Ended without mutex_, since one may have to stop.
  using Ended = std::vector<std::unique_ptr<BroadcastSource>>;

  struct Held {
    std::weak_ptr<memory::Arena> arena;
    std::vector<std::string> slabs;  // SlabKey
  };

  explicit Publisher(const PublisherOptions& options)
      : options_(options),
        leases_(options.leases),
        staging_(options.stage_bytes, options.max_staged) {}
  Status EnsureProcess();
  Status HoldSlabs(const memory::Arena& arena);
  void ReleaseUnused();
  Status Describe(Published& published);
  // Within the node (publisher_node.cpp).
  Result<SharedSlabs> Share(const NodeRequest& request);
  Result<NodeJoinAnswer> Join(const NodeJoin& join);
  Result<Published*> Whole(const std::string& lease, std::uint32_t rank);
  [[nodiscard]] Ended Collect(TimePoint now);

  const PublisherOptions options_;
  mutable std::mutex mutex_;
  LeaseTable leases_;
  Staging staging_;
  std::map<std::uint32_t, Published> published_;  // by rank
  Ended ending_;                                  // withdrawn, while leases live
  std::vector<Held> held_;
  bool stale_ = false;                      // process_ has slabs that are kept for live leases only
  std::unique_ptr<SourceProcess> process_;  // keeps its keeper from first to last
  std::unique_ptr<NodeShare> node_share_;   // last: its thread uses all of the above
};

}  // namespace rouse::transfer
