// Reads a checkpoint into a sink: several large reads at once, straight from the storage.
//
// Blocks on the caller's thread. Memory beside the sink's is bounded by the number of reads under
// way. Returns only when no byte will be written to the sink's memory any more, whatever the
// outcome; a read that hangs in the kernel holds it up for as long.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "agent/storage/checkpoint_files.h"
#include "agent/storage/read_plan.h"
#include "agent/storage/read_queue.h"
#include "agent/storage/sink.h"
#include "common/result.h"

namespace rouse::storage {

struct ReadOptions {
  std::uint32_t reads_in_flight = 16;  ///< 1 to 1,024.
  /// Threads that call pread where io_uring is not to be had or would not help. 0: one for each
  /// processor but two, 2 to 16.
  std::uint32_t threads = 0;
  /// False: threads, even where io_uring is to be had. Files that live in memory are read by
  /// threads anyway: reading them is copying, which takes processors and no waiting.
  bool use_io_uring = true;
  std::chrono::milliseconds progress_deadline{60'000};  ///< Longest time without any arrival.
  /// The sink has memory when somebody is through with what was read before: as long as all reading
  /// waits for that, no progress is asked for.
  bool sink_sets_pace = false;
  std::chrono::milliseconds deadline{3'600'000};  ///< Longest time for all of it.
};

struct ReadProgress {
  std::uint64_t bytes_total = 0;
  std::uint64_t bytes_read = 0;
  double seconds = 0;
};

struct ReadReport {
  std::uint64_t bytes = 0;
  std::uint64_t bytes_direct = 0;  ///< Of these, read past the page cache.
  std::uint64_t reads = 0;         ///< Requests, those included that ended early and were repeated.
  double seconds = 0;
  std::string way;     ///< "io_uring" or "threads".
  std::string reason;  ///< Why threads, for the log; empty for io_uring.
};

/// Called on the reading thread, about every 100 ms and at the end; must not block.
using ReadCallback = std::function<void(const ReadProgress&)>;

/// Reads what `plan`, which was made from files.checkpoint(), says into `sink`.
///
/// Errors: InvalidArgument (the sink has another size than the plan), DataLoss (a file became
/// shorter, or changed while it was read), DeadlineExceeded, Cancelled, or what the storage
/// answers; each names the file. The sink then holds no usable bytes.
Result<ReadReport> ReadCheckpoint(const CheckpointFiles& files, const ReadPlan& plan, Sink& sink,
                                  const ReadOptions& options, std::stop_token stop,
                                  const ReadCallback& on_progress);

/// The same by a queue of the caller's, made for options.reads_in_flight. The report has no reason.
Result<ReadReport> ReadCheckpoint(const CheckpointFiles& files, const ReadPlan& plan, Sink& sink,
                                  std::unique_ptr<ReadQueue> queue, const ReadOptions& options,
                                  std::stop_token stop, const ReadCallback& on_progress);

}  // namespace rouse::storage
