// Reads the checkpoint for the engine: once, however many ranks load it, through a few slots of
// memory that they all have mapped (agent/storage/stream_ring.h).
//
// A load is what the ranks of one engine ask for. It begins with the first of them, delivers
// nothing before the last of them has asked, and fills a slot anew when none of them needs what it
// held. So until its first batch a rank may still load by itself, and all the others do the same. A
// rank that goes away needs nothing any more; when all have gone the load ends. Ranks that load a
// draft model are a load of their own, which begins when no rank of the one before reads any more.
//
// Threads: every method from any thread, none but End blocks; the reading is on a thread of its own
// ("storage"). A rank that joins or leaves may be what another one waits for: ask for all again.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agent/engine/host.h"
#include "agent/storage/checkpoint_files.h"
#include "agent/storage/reader.h"
#include "agent/storage/stream_plan.h"
#include "agent/storage/stream_ring.h"
#include "common/result.h"

namespace rouse::agent {

struct CheckpointStreamOptions {
  std::string folder;  ///< Empty: there is none, every load is refused.
  storage::StreamLimits limits;
  storage::ReadOptions read = {.sink_sets_pace = true, .deadline = std::chrono::hours(24)};
  /// From the first rank's question to the last one's.
  std::chrono::milliseconds join_deadline{60'000};
};

/// A load that was read, or that failed.
struct LoadOutcome {
  Status status;
  std::uint64_t bytes = 0;  ///< Really read, also when it failed.
  std::string way;          ///< "io_uring" or "threads"; empty when nothing was read.
  std::string reason;       ///< Why threads.
  double seconds = 0;
};

struct CheckpointStreamHooks {
  /// Something that was asked for may have come. On the reading thread; must not block.
  std::function<void()> on_change;
  /// On the reading thread, before any rank is told that all has come.
  std::function<void(const LoadOutcome&)> on_read;
};

class CheckpointStream {
 public:
  CheckpointStream(CheckpointStreamOptions options, CheckpointStreamHooks hooks);
  ~CheckpointStream();
  /// Ends what is under way, and waits for reads that the kernel has begun. No hook is called after
  /// that. Blocks; once, by one thread.
  void End();

  // See EngineHost.
  Result<std::optional<OpenedStream>> Open(const HelloRequest& hello,
                                           const OpenStreamRequest& request);
  Result<std::optional<StreamedBatch>> Next(const NextBatchRequest& request);
  /// The rank is through, or loads by itself.
  void Close(std::uint32_t rank);
  /// The rank's connection has ended.
  void Leave(std::uint32_t rank);

  /// Whether the rank's last load came from here, to its end.
  bool Delivered(std::uint32_t rank) const;

 private:
  struct Consumer {
    bool opened = false;  ///< It was told the stream's shape.
    bool closed = false;
    std::size_t next = 0;      ///< The batch to be delivered to it.
    std::size_t released = 0;  ///< Batches it does not use any more.
  };
  struct Load {
    std::uint32_t ranks = 1;             ///< That are to ask for it.
    std::uint32_t model = 0;             ///< Which they load (HelloRequest).
    std::vector<CheckpointFile> wanted;  ///< In order of their names.
    std::chrono::steady_clock::time_point since;
    std::map<std::uint32_t, Consumer> consumers;
    std::stop_source stop;
    bool read = false;  ///< All has come, and no file changed meanwhile.
    Status status;      ///< Why it failed.
    // Written by the reading thread before `ring` is set, and not changed after that.
    std::unique_ptr<storage::CheckpointFiles> files;
    storage::StreamPlan plan;
    std::shared_ptr<storage::StreamRing> ring;
  };

  // With the lock held; null when the rank is none of the load's, or there is no load.
  Consumer* Find(std::uint32_t rank);
  void Work(const std::stop_token& stop);
  void Read(Load& load);
  Status Prepare(Load& load);
  void Begin(const HelloRequest& hello, std::vector<CheckpointFile> wanted);
  void Fail(Load& load, Status status);
  void EndLoad(Status status);
  Result<OpenedStream> Describe(const Load& load) const;

  const CheckpointStreamOptions options_;
  const CheckpointStreamHooks hooks_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::shared_ptr<Load> load_;  ///< That ranks ask about; null when there is none.
  std::shared_ptr<Load> next_;  ///< That the reading thread shall take up.
  std::set<std::uint32_t> delivered_;
  std::jthread thread_;
};

}  // namespace rouse::agent
