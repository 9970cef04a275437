// A stand-in for NCCL, which needs GPUs.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/memory/broadcaster.h"

namespace rouse::testing {

using memory::BroadcastId;
using memory::BroadcastOptions;
using memory::BroadcastReport;
using memory::BroadcastSeat;

/// What the fakes of one test share in place of a network: who is there, and whose bytes.
struct Hub {
  std::mutex mutex;
  std::condition_variable_any changed;
  std::vector<std::byte> bytes;
  std::vector<BroadcastSeat> seats;
  bool full = false;
  std::atomic<bool> sending = false;  ///< The root waits for the others.
};

/// Not NCCL: copies from the root's arena once every rank is there. Fails or damages when told so.
class FakeBroadcaster final : public memory::Broadcaster {
 public:
  enum class Mode { kWorks, kNoId, kFails, kFlipsAByte, kAbsent };
  FakeBroadcaster(Hub& hub, Mode mode) : hub_(hub), mode_(mode) {}

  Result<BroadcastId> NewId() override {
    if (mode_ == Mode::kNoId) return Internal("no id from the fake");
    BroadcastId id{};
    id[7] = std::byte{42};
    return id;
  }
  Result<BroadcastReport> Send(const BroadcastSeat& seat, const memory::Arena& arena,
                               const BroadcastOptions& options) override {
    if (seat.rank != 0) return InvalidArgument("only rank 0 sends");
    std::unique_lock lock(hub_.mutex);
    hub_.bytes.assign(arena.span().begin(), arena.span().end());
    hub_.changed.notify_all();
    hub_.sending = true;
    const bool full = hub_.changed.wait_for(lock, options.stop, options.setup_deadline,
                                            [&] { return hub_.full; });
    hub_.sending = false;
    if (full) return BroadcastReport{};
    if (options.stop.stop_requested()) {
      return Status(StatusCode::kCancelled, "the fake was stopped");
    }
    return DeadlineExceeded("the fake waited for all ranks");
  }
  Result<BroadcastReport> Receive(const BroadcastSeat& seat, memory::Arena& arena,
                                  const BroadcastOptions& options) override {
    std::unique_lock lock(hub_.mutex);
    hub_.seats.push_back(seat);
    if (seat.ranks - 1 == static_cast<int>(hub_.seats.size())) hub_.full = true;
    hub_.changed.notify_all();
    if (mode_ == Mode::kFails) return Unavailable("the fake's ring broke");
    if (!hub_.changed.wait_for(lock, options.setup_deadline,
                               [&] { return hub_.full && !hub_.bytes.empty(); })) {
      return DeadlineExceeded("the fake waited for all ranks");
    }
    std::memcpy(arena.span().data(), hub_.bytes.data(), hub_.bytes.size());
    if (mode_ == Mode::kFlipsAByte) arena.span()[5 * kChunkBytes + 3] ^= std::byte{1};
    return BroadcastReport{};
  }

 private:
  Hub& hub_;
  const Mode mode_;
};

/// A node of eight GPUs, all of which its processes see.
class FakeBroadcasting final : public memory::Broadcasting {
 public:
  explicit FakeBroadcasting(Hub& hub, FakeBroadcaster::Mode mode = FakeBroadcaster::Mode::kWorks)
      : hub_(hub), mode_(mode) {}

  Status Check() override { return {}; }
  memory::BroadcastDomain Domain() override { return {"node", 8}; }
  Result<std::unique_ptr<memory::Broadcaster>> On(const std::string& gpu) override {
    if (!gpu.starts_with("GPU-")) return NotFound("no GPU " + gpu);
    if (mode_ == FakeBroadcaster::Mode::kAbsent) return Unavailable("no NCCL from the fake");
    return std::unique_ptr<memory::Broadcaster>(std::make_unique<FakeBroadcaster>(hub_, mode_));
  }

 private:
  Hub& hub_;
  const FakeBroadcaster::Mode mode_;
};

}  // namespace rouse::testing
