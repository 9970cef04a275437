// One source of a pull as its target has it: a connection, the keys of its slabs, the reads under
// way, and a copy of its availability bitmap. Private to agent/transfer.
//
// Threads: all of it belongs to the thread that drives the worker.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "agent/ucx/endpoint.h"
#include "agent/ucx/worker.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// Arena offsets at which slabs of these sizes start.
std::vector<std::uint64_t> Starts(const std::vector<std::uint64_t>& sizes);
/// Which slab holds the byte at `offset`.
std::size_t IndexOf(const std::vector<std::uint64_t>& starts, std::uint64_t offset);

class RemoteSource {
 public:
  struct Arrival {
    std::uint64_t piece = 0;
    Status status;
  };

  /// `rank` must outlive this object. Errors are those of Endpoint::Connect and OpenKey.
  static Result<std::unique_ptr<RemoteSource>> Connect(ucx::Worker& worker,
                                                       const std::string& worker_address,
                                                       const RemoteRank& rank);

  /// Starts to read arena bytes from `offset` on, which cross no slab boundary of the source.
  void Read(std::uint64_t piece, std::uint64_t offset, std::span<std::byte> into,
            const ucx::RegisteredMemory& memory);
  /// The reads that have ended since the last call.
  std::vector<Arrival> TakeArrivals();

  /// Starts to read the bitmap; nothing else may be done with it until TakeAvailability answers.
  /// Requires the rank to have one.
  void ReadAvailability();
  /// Its words once it has arrived, nullopt before; how the read failed.
  Result<std::optional<std::span<const std::uint64_t>>> TakeAvailability();

  /// Why the connection broke; ok until it does.
  const Status& status() const { return endpoint_->status(); }
  std::string Transport() const { return endpoint_->Transport(); }
  /// Where the source's slabs start.
  const std::vector<std::uint64_t>& boundaries() const { return starts_; }

 private:
  struct Pending {
    std::uint64_t piece = 0;
    ucx::GetRequest request;
  };

  explicit RemoteSource(const RemoteRank& rank);

  const RemoteRank& rank_;
  const std::vector<std::uint64_t> starts_;
  // Destroyed in reverse: reads under way are given up, then the endpoint closes, after which
  // nothing is written.
  std::vector<std::uint64_t> bitmap_;
  std::optional<ucx::RegisteredMemory> bitmap_memory_;
  std::unique_ptr<ucx::Endpoint> endpoint_;
  std::vector<ucx::RemoteKey> keys_;
  std::optional<ucx::RemoteKey> bitmap_key_;
  std::vector<Pending> reads_;
  std::optional<ucx::GetRequest> looking_;
};

}  // namespace rouse::transfer
