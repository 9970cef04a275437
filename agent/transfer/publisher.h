// The source's side of a pull: hands out what peers need to read our arenas one-sidedly.
//
//   auto publisher = Publisher::Create(context, {});
//   publisher->Publish(registered_arena, manifest_with_digests);     // once for each rank
//   OpenResponse answer = *publisher->Open("default/demo-1");        // POST /v1/weights/open
//
// A published arena stays mapped and registered while it is published or a lease lives. Bytes go by UCX on
// one thread of the publisher's own ("ucx-source"); HTTP is the caller's.
//
// Threads: every method from any thread.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/transfer/lease_table.h"
#include "agent/transfer/registered_arena.h"
#include "agent/ucx/worker.h"
#include "common/messages.h"
#include "common/result.h"

namespace rouse::transfer {

class Publisher {
 public:
  static Result<std::unique_ptr<Publisher>> Create(std::shared_ptr<ucx::Context> context,
                                                   const LeaseLimits& limits);

  /// Offers one rank's arena. The manifest must describe it and bring the digest of every chunk
  /// (InvalidArgument). AlreadyExists when this rank is published. The arena is sealed if it is not yet.
  Status Publish(std::shared_ptr<RegisteredArena> arena, WeightManifest manifest);

  /// Stops offering anything. The arenas stay readable until the last lease has ended.
  void Withdraw();

  /// Everything that is published, under a new lease. Unavailable when that is nothing; ResourceExhausted
  /// when too many leases are open. Whether all ranks are there, and whether the requester may have
  /// them, is for the caller to check first.
  Result<OpenResponse> Open(const std::string& requester);
  /// NotFound when the lease has ended: open again.
  Status Renew(const std::string& lease);
  Status Close(const std::string& lease);
  /// Drops leases that have ended, and withdrawn arenas that no lease needs any more. Open and Close do
  /// this too; call it every few seconds so that it also happens when nobody asks.
  void Expire();

  /// Live leases; published ranks.
  std::size_t lease_count() const;
  std::size_t rank_count() const;

 private:
  struct Published {
    std::shared_ptr<RegisteredArena> arena;
    RemoteRank description;
  };

  Publisher(std::unique_ptr<ucx::Worker> worker, std::string address, const LeaseLimits& limits);
  void Collect(TimePoint now);

  const std::string address_;
  mutable std::mutex mutex_;
  LeaseTable leases_;
  std::map<std::uint32_t, Published> published_;       // by rank
  std::vector<std::shared_ptr<RegisteredArena>> withdrawn_;  // kept for the leases that live
  std::unique_ptr<ucx::Worker> worker_;
  std::unique_ptr<ucx::ProgressThread> progress_;  // last: stops before the worker goes
};

}  // namespace rouse::transfer
