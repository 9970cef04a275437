#include "agent/cuda/device_sink.h"

#include <array>
#include <deque>
#include <thread>
#include <vector>

#include "agent/cuda/handles.h"
#include "agent/storage/read_plan.h"

namespace rouse::cuda {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kStreams = 4;

class Staged final : public storage::Sink {
 public:
  Staged(std::shared_ptr<const Device> device, memory::Arena& arena,
         const DeviceSinkOptions& options)
      : device_(std::move(device)),
        driver_(device_->driver()),
        arena_(arena),
        options_(options),
        events_(options.buffers) {}

  ~Staged() override {
    const Current current(*device_);
    static_cast<void>(Synchronize());
    events_.clear();
    streams_ = {};
    staging_ = {};
  }

  Status Prepare() {
    const Current current(*device_);
    ROUSE_ASSIGN_OR_RETURN(staging_,
                           MakePinnedBuffer(driver_, options_.buffer_bytes * options_.buffers));
    for (Stream& stream : streams_) {
      ROUSE_ASSIGN_OR_RETURN(stream, MakeStream(driver_));
    }
    for (std::size_t i = 0; i < options_.buffers; ++i) {
      ROUSE_ASSIGN_OR_RETURN(events_[i], MakeEvent(driver_));
      free_.push_back(i);
    }
    return {};
  }

  std::uint64_t arena_bytes() const override { return arena_.bytes(); }

  std::byte* Acquire(std::uint64_t, std::uint64_t bytes) override {
    if (bytes > options_.buffer_bytes) return nullptr;
    if (free_.empty() && !Reclaim().ok()) return nullptr;  // WaitForMemory says what it is
    if (free_.empty()) return nullptr;
    const std::size_t index = free_.back();
    free_.pop_back();
    return Buffer(index);
  }

  Status Filled(std::byte* memory, std::uint64_t arena_offset, std::uint64_t bytes) override {
    const Current current(*device_);
    const std::size_t index = IndexOf(memory);
    const CUstream stream = streams_[next_stream_++ % streams_.size()].get();
    const CUdeviceptr to = Address(arena_.span().data()) + arena_offset;
    // From here on it is under way, whatever the calls answer.
    busy_.push_back(index);
    // With the zeros behind a file's end: new GPU memory is not zero everywhere, and the arena's
    // digests shall depend on the files only.
    const std::uint64_t unit = storage::kDirectAlignment;
    ROUSE_CUDA_RETURN_IF_ERROR(
        driver_, cuMemcpyHtoDAsync(to, memory, (bytes + unit - 1) / unit * unit, stream),
        "copy to " + device_->name());
    return ToStatus(driver_, driver_.cuEventRecord(events_[index].get(), stream),
                    "record an event");
  }

  void Unused(std::byte* memory) override { free_.push_back(IndexOf(memory)); }

  Status WaitForMemory(milliseconds timeout) override {
    const auto until = Clock::now() + timeout;
    for (;;) {
      ROUSE_RETURN_IF_ERROR(Reclaim());
      if (!free_.empty() || Clock::now() > until) return {};
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }

  Status Flush() override {
    const Current current(*device_);
    ROUSE_RETURN_IF_ERROR(Synchronize());
    free_.insert(free_.end(), busy_.begin(), busy_.end());
    busy_.clear();
    return {};
  }

 private:
  std::byte* Buffer(std::size_t index) const {
    return static_cast<std::byte*>(staging_.get()) + index * options_.buffer_bytes;
  }
  std::size_t IndexOf(const std::byte* memory) const {
    return static_cast<std::size_t>(memory - static_cast<const std::byte*>(staging_.get())) /
           options_.buffer_bytes;
  }

  // Takes back the buffers whose bytes have arrived.
  Status Reclaim() {
    const Current current(*device_);
    Status failed;
    std::erase_if(busy_, [&](std::size_t index) {
      const CUresult answer = driver_.cuEventQuery(events_[index].get());
      if (answer == CUDA_ERROR_NOT_READY) return false;
      if (answer != CUDA_SUCCESS) {
        failed = ToStatus(driver_, answer, "copy to " + device_->name());
        return false;
      }
      free_.push_back(index);
      return true;
    });
    return failed;
  }

  Status Synchronize() {
    for (const Stream& stream : streams_) {
      if (stream.get() == nullptr) continue;
      ROUSE_CUDA_RETURN_IF_ERROR(driver_, cuStreamSynchronize(stream.get()),
                                 "copy to " + device_->name());
    }
    return {};
  }

  const std::shared_ptr<const Device> device_;
  const Driver& driver_;
  memory::Arena& arena_;
  const DeviceSinkOptions options_;
  PinnedBuffer staging_;
  std::array<Stream, kStreams> streams_;
  std::vector<Event> events_;  // by buffer
  std::vector<std::size_t> free_;
  std::deque<std::size_t> busy_;
  std::size_t next_stream_ = 0;
};

}  // namespace

Result<std::unique_ptr<storage::Sink>> DeviceSink(std::shared_ptr<const Device> device,
                                                  memory::Arena& arena,
                                                  const DeviceSinkOptions& options) {
  auto sink = std::make_unique<Staged>(std::move(device), arena, options);
  ROUSE_RETURN_IF_ERROR(sink->Prepare());
  return std::unique_ptr<storage::Sink>(std::move(sink));
}

}  // namespace rouse::cuda
