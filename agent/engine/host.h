// What the engine socket needs from the agent: the weights themselves.
//
// Called on the engine socket's thread only; calls must be short, because all ranks share it.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/engine/command_book.h"
#include "agent/engine/protocol.h"
#include "agent/engine/session.h"
#include "agent/memory/owned_fd.h"
#include "common/result.h"

namespace rouse::agent {

/// Weights that are in place and verified.
struct ReadyWeights {
  ArenaShape shape;
  std::string manifest;  ///< JSON, with digests.
};

/// A checkpoint that streams: its shape, and descriptors of the slots that it streams through.
struct OpenedStream {
  StreamShape shape;
  std::vector<memory::OwnedFd> slots;
};

class EngineHost {
 public:
  virtual ~EngineHost() = default;

  /// While it is not settled, EngineServer::Wake says when to ask again.
  virtual WeightOffer Offer(std::uint32_t rank) = 0;

  virtual void OnRankConnected(const HelloRequest& hello, WeightsFrom from) = 0;
  virtual void OnRankDisconnected(std::uint32_t rank) = 0;
  /// An engine was turned away because it may not load from storage.
  virtual void OnRefused(const HelloRequest& hello, const std::string& reason) = 0;
  virtual void OnPhase(std::uint32_t rank, const PhaseRequest& phase) = 0;
  /// A request was answered; for counting.
  virtual void OnAnswered(std::string_view type, bool ok) = 0;

  /// The weights of `rank`; nullopt while they arrive (EngineServer::Wake says when to ask again);
  /// an error when they will not come.
  virtual Result<std::optional<ReadyWeights>> Weights(std::uint32_t rank) = 0;
  /// A new arena for the rank's engine to fill, in place of what the agent had for this rank.
  virtual Result<ArenaShape> CreateArena(const HelloRequest& hello, std::uint64_t bytes) = 0;
  /// Descriptors of the rank's slabs [first, first + count). InvalidArgument outside the arena.
  virtual Result<std::vector<memory::OwnedFd>> Slabs(std::uint32_t rank, std::size_t first,
                                                     std::size_t count) = 0;
  /// Bytes of this GPU's memory that are held for the pod's engine, be it there or not.
  virtual std::uint64_t HeldOn(const std::string& gpu) = 0;
  /// What a rank has looked for in its compile caches, once its model is compiled.
  virtual void OnCacheUse(const CacheUseRequest& use) = 0;
  /// Checks the manifest, seals the arena, and has the digests taken later.
  virtual Status Publish(const HelloRequest& hello, const memory::OwnedFd& manifest,
                         const PublishRequest& request) = 0;

  /// Begins to read the checkpoint for the rank, or lets it join its world's ranks. nullopt while
  /// it is being opened, and while a batch is read (EngineServer::Wake says when to ask again); an
  /// error when the engine has to load by itself.
  virtual Result<std::optional<OpenedStream>> OpenStream(const HelloRequest& hello,
                                                         const OpenStreamRequest& request) = 0;
  virtual Result<std::optional<StreamedBatch>> NextBatch(const NextBatchRequest& request) = 0;
  virtual void CloseStream(const CloseStreamRequest& request) = 0;

  /// Nothing of the rank's arena is mapped by its engine any more. FailedPrecondition when the
  /// engine was not told to sleep.
  virtual Status ReleaseArena(std::uint32_t rank) = 0;
  /// The arena that the weights of a rank that slept arrive in; nullopt while there is none yet
  /// (EngineServer::Wake says when to ask again); an error when there will be none.
  virtual Result<std::optional<ArenaShape>> AwaitArena(std::uint32_t rank) = 0;

  virtual CommandBook::Core OnCoreAttached(const AttachRequest& request) = 0;
  virtual void OnCoreGone(CommandBook::Core core) = 0;
  /// What the core shall do now (EngineServer::Wake says when to ask again).
  virtual std::optional<Command> NextCommand(CommandBook::Core core) = 0;
  virtual void OnCommandDone(CommandBook::Core core, const CommandDoneRequest& done) = 0;
};

}  // namespace rouse::agent
