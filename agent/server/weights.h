// The weights this agent holds: one arena a rank, from its first byte to being served to peers.
//
//   an engine fills:   Create -> (the engine writes) -> Publish -> digests -> ready
//   peers send:        Arrive -> (the pull writes)   -> Arrived            -> ready
//
// When every rank is ready, all are offered to peers (servable); what peers send is offered while
// it arrives, chunk by chunk as it is verified. An arena outlives the engine that filled it: the
// next engine of the pod gets it from Weights().
//
// The arena of an engine that computes on a GPU lies in that GPU's memory, so which it is must be
// known before weights can arrive there:
//
//   Announce -> (the engine connects) -> AwaitGpu -> Arrive -> ...
//
// Until then nothing of that GPU's memory is taken, which the engine measures when it starts.
//
// While its engine sleeps there are none, only what they were:
//
//   BeginSleep -> EndLeases -> (every rank's engine) OnReleased -> Free
//   BeginWake  -> Arrive ... of weights that fit -> EndRest
//
// Threads: every method from any thread. Digests are taken on the caller of Prepare, without the
// lock.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/engine/host.h"
#include "agent/memory/arena.h"
#include "agent/server/resting_weights.h"
#include "agent/startup/report.h"
#include "agent/transfer/availability.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/registered_arena.h"
#include "common/manifest.h"

namespace rouse::agent {

struct WeightStoreOptions {
  std::uint64_t slab_bytes = memory::kDefaultSlabBytes;
  int digest_threads = 1;
  /// Null: weights of engines on GPUs are kept in host memory too.
  std::shared_ptr<memory::Gpus> gpus;
};

class WeightStore {
 public:
  /// `why_none` is what an engine is told while there are no weights.
  WeightStore(std::shared_ptr<ucx::Context> context, std::unique_ptr<transfer::Publisher> publisher,
              const WeightStoreOptions& options, std::string why_none);

  // For the engine socket (see EngineHost).
  WeightOffer Offer(std::uint32_t rank) const;
  Result<std::optional<ReadyWeights>> Weights(std::uint32_t rank) const;
  /// In the memory of the engine's GPU where that can be had, else in the host's. On a GPU a slab's
  /// memory is taken when the engine asks for the slab: its own copy goes meanwhile.
  Result<ArenaShape> Create(const HelloRequest& hello, std::uint64_t bytes);
  /// A rank's engine has connected, or gone.
  void OnEngine(const HelloRequest& hello);
  void OnEngineGone(std::uint32_t rank);
  Result<std::vector<memory::OwnedFd>> Slabs(std::uint32_t rank, std::size_t first,
                                             std::size_t count);
  /// See EngineHost::HeldOn.
  std::uint64_t HeldOn(const std::string& gpu) const;
  /// What an engine has filled its arena with. The agent has counted the bytes that it read itself.
  /// Placeholders are offered to no peer.
  enum class Content { kReadByEngine, kReadByAgent, kPlaceholders };
  Status Publish(const HelloRequest& hello, const std::string& manifest_json, Content content);
  /// Whether any rank's engine computes with placeholders.
  bool HasPlaceholders() const;

  // For the pull (weights_arrive.cpp).
  /// Where a rank arrives, and which of its chunks are there.
  struct Arriving {
    std::shared_ptr<transfer::RegisteredArena> arena;
    std::shared_ptr<transfer::Availability> available;
  };
  /// An arena for the weights that `manifest` describes: the one that an earlier attempt left, with
  /// what had arrived when it was of the same weights, else a new one, with its memory taken and
  /// sealed against the engine. Slow.
  Result<Arriving> Arrive(const WeightManifest& manifest, std::uint32_t ranks,
                          const std::string& origin,
                          const std::shared_ptr<const memory::Memory>& memory);
  /// Whether weights in a GPU's memory could be taken here. FailedPrecondition says why not.
  Status CheckGpus() const;
  /// Engines are told that these weights come, Arrive is called later.
  Status Announce(const WeightManifest& manifest, std::uint32_t ranks, const std::string& origin);
  /// Waits until the rank's engine has connected; the memory of its GPU. Cancelled when stopped.
  Result<std::shared_ptr<const memory::Memory>> AwaitGpu(std::uint32_t rank,
                                                         const std::stop_token& stop);
  /// Whether `manifest`'s rank is ready with exactly this content.
  bool Has(const WeightManifest& manifest) const;
  /// The identity announced for a rank that arrives or is ready.
  std::optional<Identity> IdentityOf(std::uint32_t rank) const;
  /// All of it is there. `origin` says from whom, for people.
  Status Arrived(std::uint32_t rank, const std::shared_ptr<transfer::RegisteredArena>& arena,
                 const std::string& origin);
  /// What was to arrive will not come; `why` is what engines are told.
  void Abandon(const std::string& why);

  // For sleep and wake (weights_sleep.cpp).
  /// Ok when all ranks are here and digested.
  Status Complete() const;
  /// Offers nothing to peers any more; what the weights are is kept. Unavailable unless Complete().
  Status BeginSleep();
  /// Waits for peers that still read, at most `longest`, then ends their reads. False when it had
  /// to. Whoever was reading fails and asks another.
  bool EndLeases(std::chrono::milliseconds longest, const std::stop_token& stop);
  /// The rank's engine has nothing of its arena mapped any more. True when that was the last one.
  Result<bool> OnReleased(std::uint32_t rank);
  /// Gives the memory back, when every rank is released. Internal when something here still holds
  /// it after `longest`.
  Status Free(std::chrono::milliseconds longest);
  /// From now on weights may arrive that fit those before.
  void BeginWake();
  /// It serves again: what arrived, or what it never gave up.
  void EndRest();
  /// While it sleeps or wakes: FailedPrecondition for what the engine could not go on with.
  Status Fits(const WeightManifest& manifest, std::size_t ranks) const;
  /// See EngineHost::AwaitArena.
  Result<std::optional<ArenaShape>> NextArena(std::uint32_t rank) const;

  // For peers (weights_offer.cpp).
  /// Does the next piece of slow work: digests of one rank, or offering all ranks to peers, or that
  /// those which were offered while they arrived are complete. Also what has to be done every few
  /// seconds for peers whose leases have ended. `stop` ends a digest early.
  enum class Work { kNone, kDigested, kOfferedArriving, kOffered };
  Result<Work> Prepare(const std::stop_token& stop);
  /// Unavailable while there is nothing to offer, or nothing complete and `partial` is false.
  Result<OpenResponse> Open(const std::string& requester, bool partial);
  Result<RemoteSlab> StagePart(const StageRequest& request) { return publisher_->Stage(request); }
  Status Renew(const std::string& lease) { return publisher_->Renew(lease); }
  Status Close(const std::string& lease) { return publisher_->Close(lease); }
  void Withdraw();
  std::size_t lease_count() const { return publisher_->lease_count(); }

  Holdings holdings() const;
  void AddTransport(const std::string& transport);
  /// Bytes that the agent has read from storage for its engine.
  void AddStorageBytes(std::uint64_t bytes);
  /// Bytes of ranks that an engine published, and of ranks that arrived from a peer.
  std::uint64_t published_bytes() const;
  std::uint64_t pulled_bytes() const;

 private:
  enum class Stage { kFilling, kArriving, kPublished, kReady };
  enum class Offered { kNothing, kArriving, kComplete };
  struct Rank {
    Stage stage = Stage::kFilling;
    std::shared_ptr<memory::Arena> arena;                   ///< None while it is only announced.
    std::shared_ptr<transfer::RegisteredArena> registered;  ///< While it arrives.
    std::shared_ptr<transfer::Availability> available;      ///< While it arrives.
    WeightManifest manifest;
    Identity identity;
    std::string origin;
    bool from_peer = false;
    bool placeholders = false;
    std::uint64_t generation = 0;
  };

  static ArenaShape ShapeOf(const memory::Arena& arena);
  Rank* Find(std::uint32_t rank);
  const Rank* Find(std::uint32_t rank) const;
  bool AllReady(bool or_arriving) const;
  bool HasPlaceholdersLocked() const;
  memory::ArenaOptions OptionsOf(std::uint32_t rank, std::uint64_t bytes,
                                 std::shared_ptr<const memory::Memory> memory, bool populate) const;
  Result<std::unique_ptr<memory::Arena>> ArenaToFill(const HelloRequest& hello,
                                                     std::uint64_t bytes) const;
  void Expect(const WeightManifest& manifest, std::uint32_t ranks, const std::string& origin,
              const Arriving& arriving);
  Result<bool> DigestOne(const std::stop_token& stop);
  Result<Work> OfferAll();
  Result<Work> OfferComplete(std::uint64_t generation);
  void WithdrawLocked();

  const std::shared_ptr<ucx::Context> context_;
  const std::unique_ptr<transfer::Publisher> publisher_;
  const WeightStoreOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable_any engines_changed_;
  std::map<std::uint32_t, std::string> engines_;  ///< The GPU of each rank that is connected.
  std::map<std::uint32_t, Rank> ranks_;
  std::optional<RestingWeights> resting_;  ///< From BeginSleep to EndRest.
  std::uint32_t expected_ranks_ = 0;
  std::uint64_t generation_ = 0;
  std::string why_none_;
  Offered offered_ = Offered::kNothing;
  bool withdrawn_ = false;  ///< For good: the agent ends.
  BytesBySource bytes_;
  std::string transport_;
};

}  // namespace rouse::agent
