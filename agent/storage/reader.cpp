#include "agent/storage/reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "common/round_up.h"

namespace rouse::storage {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick{50};  // how soon a stop or a deadline is noticed
constexpr std::chrono::milliseconds kProgressEvery{100};
constexpr std::uint32_t kMaxReadsInFlight = 1024;
constexpr int kMaxRetries = 100;  // of one read that answers EAGAIN, without any progress

class Reader {
 public:
  Reader(const CheckpointFiles& files, const ReadPlan& plan, Sink& sink,
         std::unique_ptr<ReadQueue> queue, const ReadOptions& options, std::stop_token stop,
         const ReadCallback& on_progress)
      : files_(files),
        plan_(plan),
        sink_(sink),
        options_(options),
        stop_(std::move(stop)),
        on_progress_(on_progress),
        slots_(std::clamp(options.reads_in_flight, 1u, kMaxReadsInFlight)),
        direct_(plan.shards.size()),
        queue_(std::move(queue)) {
    report_.way = queue_->name();
    for (std::size_t i = 0; i < slots_.size(); ++i) free_.push_back(i);
    for (std::size_t i = 0; i < direct_.size(); ++i) {
      direct_[i] = plan.shards[i].direct && files.direct_fd(i) >= 0;
    }
  }

  Result<ReadReport> Run() {
    started_ = last_arrival_ = last_progress_ = Clock::now();
    progress_.bytes_total = plan_.read_bytes();
    Status status = ReadAll();
    if (!status.ok()) Drain();
    const Status flushed = sink_.Flush();
    if (status.ok()) status = flushed;
    if (status.ok()) status = files_.CheckUnchanged();
    ROUSE_RETURN_IF_ERROR(status);
    report_.bytes = progress_.bytes_read;
    report_.seconds = std::chrono::duration<double>(Clock::now() - started_).count();
    Progress(true);
    return report_;
  }

 private:
  // One read under way.
  struct Slot {
    Read read;
    std::byte* memory = nullptr;
    std::uint64_t done = 0;
    int retries = 0;
    bool direct = false;
  };

  Status ReadAll() {
    std::vector<ReadResult> results;
    std::size_t next = 0;
    while (next < plan_.reads.size() || free_.size() < slots_.size()) {
      ROUSE_RETURN_IF_ERROR(CheckTime());
      while (next < plan_.reads.size() && !free_.empty()) {
        const Read& read = plan_.reads[next];
        std::byte* memory = sink_.Acquire(read.arena_offset, read.bytes);
        if (memory == nullptr) break;
        ++next;
        ROUSE_RETURN_IF_ERROR(Begin(read, memory));
      }
      if (free_.size() == slots_.size()) {  // nothing under way, so the sink is what we wait for
        ROUSE_RETURN_IF_ERROR(sink_.WaitForMemory(kTick));
        if (options_.sink_sets_pace) last_arrival_ = Clock::now();
        continue;
      }
      results.clear();
      ROUSE_RETURN_IF_ERROR(queue_->Wait(kTick, results));
      // All of them, so that after an error the slots tell what is still under way.
      Status first;
      for (const ReadResult& result : results) {
        const Status status = OnResult(result);
        if (first.ok()) first = status;
      }
      ROUSE_RETURN_IF_ERROR(first);
      Progress(false);
    }
    return {};
  }

  Status CheckTime() const {
    const std::string so_far = "reading the checkpoint: " + std::to_string(progress_.bytes_read) +
                               " of " + std::to_string(progress_.bytes_total) +
                               " bytes had arrived";
    if (stop_.stop_requested()) return Status(StatusCode::kCancelled, so_far);
    const auto now = Clock::now();
    if (now - started_ > options_.deadline) {
      return DeadlineExceeded(so_far + " after " + std::to_string(options_.deadline.count()) +
                              " ms");
    }
    if (now - last_arrival_ > options_.progress_deadline) {
      return DeadlineExceeded(so_far + ", then none for " +
                              std::to_string(options_.progress_deadline.count()) +
                              " ms; look after the storage");
    }
    return {};
  }

  Status Begin(const Read& read, std::byte* memory) {
    const std::size_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = {.read = read, .memory = memory, .direct = direct_[read.shard]};
    return Submit(slot);
  }

  Status Submit(std::size_t index) {
    Slot& slot = slots_[index];
    const std::uint64_t left = slot.read.bytes - slot.done;
    ++report_.reads;
    const Status status = queue_->Submit(
        {.id = index,
         .fd = slot.direct ? files_.direct_fd(slot.read.shard) : files_.fd(slot.read.shard),
         .file_offset = slot.read.file_offset + slot.done,
         .memory = slot.memory + slot.done,
         .bytes = static_cast<std::uint32_t>(slot.direct ? RoundUp(left, kDirectAlignment) : left),
         .buffered = !slot.direct});
    if (!status.ok()) GiveUp(index);
    return status;
  }

  std::byte* Free(std::size_t index) {
    free_.push_back(index);
    return std::exchange(slots_[index].memory, nullptr);
  }

  void GiveUp(std::size_t index) { sink_.Unused(Free(index)); }

  Status OnResult(const ReadResult& result) {
    Slot& slot = slots_[result.id];
    if (result.bytes < 0) return OnError(result.id, static_cast<int>(-result.bytes));
    const std::uint64_t left = slot.read.bytes - slot.done;
    if (result.bytes == 0) {
      GiveUp(result.id);
      return DataLoss(Name(slot) +
                      ": became shorter while it was read; start again when nobody "
                      "writes to it");
    }
    const std::uint64_t bytes = std::min(static_cast<std::uint64_t>(result.bytes), left);
    last_arrival_ = Clock::now();
    progress_.bytes_read += bytes;
    if (slot.direct) report_.bytes_direct += bytes;
    slot.done += bytes;
    slot.retries = 0;
    if (slot.done < slot.read.bytes) {
      slot.direct = false;  // the rest may begin anywhere
      return Submit(result.id);
    }
    // A direct read of a file's last block brings what the block device has behind its end.
    std::memset(slot.memory + slot.read.bytes, 0,
                RoundUp(slot.read.bytes, kDirectAlignment) - slot.read.bytes);
    return sink_.Filled(Free(result.id), slot.read.arena_offset, slot.read.bytes);
  }

  Status OnError(std::size_t index, int error) {
    Slot& slot = slots_[index];
    if (error == EINTR || (error == EAGAIN && ++slot.retries <= kMaxRetries)) return Submit(index);
    if (error == EINVAL && slot.direct) {  // the file system does not take them after all
      direct_[slot.read.shard] = slot.direct = false;
      return Submit(index);
    }
    GiveUp(index);
    return FromErrno(
        error, "read " + Name(slot) + " at " + std::to_string(slot.read.file_offset + slot.done));
  }

  const std::string& Name(const Slot& slot) const {
    return files_.checkpoint().shards[slot.read.shard].file;
  }

  // After an error: waits until nothing is under way.
  void Drain() {
    queue_->Cancel();
    std::vector<ReadResult> results;
    while (free_.size() < slots_.size()) {
      results.clear();
      if (!queue_->Wait(kTick, results).ok()) break;  // its destructor is the last resort
      for (const ReadResult& result : results) GiveUp(result.id);
    }
    queue_.reset();
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].memory != nullptr) GiveUp(i);
    }
  }

  void Progress(bool at_end) {
    const auto now = Clock::now();
    if (!on_progress_ || (!at_end && now - last_progress_ < kProgressEvery)) return;
    last_progress_ = now;
    progress_.seconds = std::chrono::duration<double>(now - started_).count();
    on_progress_(progress_);
  }

  const CheckpointFiles& files_;
  const ReadPlan& plan_;
  Sink& sink_;
  const ReadOptions& options_;
  std::stop_token stop_;
  const ReadCallback& on_progress_;
  std::vector<Slot> slots_;
  std::vector<std::size_t> free_;  // indices of slots_ that are not under way
  std::vector<bool> direct_;       // by shard
  ReadReport report_;
  ReadProgress progress_;
  Clock::time_point started_, last_arrival_, last_progress_;
  std::unique_ptr<ReadQueue> queue_;  // last: ends before what its reads write to
};

bool AnyDirect(const CheckpointFiles& files) {
  for (std::size_t i = 0; i < files.checkpoint().shards.size(); ++i) {
    if (files.direct_fd(i) >= 0) return true;
  }
  return false;
}

std::uint32_t ThreadsByDefault() {
  return std::clamp(std::thread::hardware_concurrency(), 4u, 18u) - 2;
}

}  // namespace

Result<ReadReport> ReadCheckpoint(const CheckpointFiles& files, const ReadPlan& plan, Sink& sink,
                                  std::unique_ptr<ReadQueue> queue, const ReadOptions& options,
                                  std::stop_token stop, const ReadCallback& on_progress) {
  if (sink.arena_bytes() != plan.arena_bytes) {
    return InvalidArgument("read a checkpoint of " + std::to_string(plan.arena_bytes) +
                           " bytes into an arena of " + std::to_string(sink.arena_bytes()));
  }
  return Reader(files, plan, sink, std::move(queue), options, std::move(stop), on_progress).Run();
}

Result<ReadReport> ReadCheckpoint(const CheckpointFiles& files, const ReadPlan& plan, Sink& sink,
                                  const ReadOptions& options, std::stop_token stop,
                                  const ReadCallback& on_progress) {
  std::unique_ptr<ReadQueue> queue;
  std::string reason = "io_uring was not asked for";
  if (options.use_io_uring && !AnyDirect(files)) {
    reason = "no file can be read past the page cache";
  } else if (options.use_io_uring) {
    auto uring = CreateUringQueue(std::min(options.reads_in_flight, kMaxReadsInFlight));
    if (uring.ok()) queue = *std::move(uring);
    reason = uring.status().message();
  }
  if (!queue) queue = CreateThreadQueue(options.threads > 0 ? options.threads : ThreadsByDefault());
  auto report =
      ReadCheckpoint(files, plan, sink, std::move(queue), options, std::move(stop), on_progress);
  if (report.ok()) report->reason = reason;
  return report;
}

}  // namespace rouse::storage
