// Whether targets that start together are served faster by one broadcast or by a pull each. Pure
// and deterministic.
//
// A broadcast moves the bytes once, from GPU to GPU along a ring, but its communicator has to be
// set up first. Pulls begin at once and share what the source's links can send. So a broadcast pays
// for many targets and many bytes:
//
//   pulls      bytes · max(1 / pull, targets / egress)
//   broadcast  setup + bytes / broadcast

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rouse::transfer {

/// One process of a batch.
struct BroadcastMember {
  /// What a broadcast cannot cross (nccl::DomainName); empty is unknown and equals nothing.
  std::string domain;
  std::string gpu;  ///< Its UUID; NCCL refuses two ranks on one.

  bool operator==(const BroadcastMember&) const = default;
};

/// Targets that want the same rank's weights at the same time.
struct BroadcastBatch {
  BroadcastMember source;
  std::vector<BroadcastMember> targets;
  std::uint64_t bytes = 0;
  bool library = false;  ///< The source has NCCL; a target without it does not join a batch.
};

/// Bytes per second, and seconds, as measured between two H200.
struct TransportRates {
  /// One pull by itself between two H200 over NVLink: docs/benchmarks/transfer-h200-x2.json.
  double pull = 395e9;
  /// All pulls of one source together. The same: it is the source's links that bound a pull.
  double egress = 395e9;
  /// What every target of a broadcast receives: docs/benchmarks/broadcast-h200-x2.json, one target.
  double broadcast = 239e9;
  /// Setting up a communicator in a process that has none yet (0.435), and taking it down (0.468).
  double setup_seconds = 0.9;
};

struct TransportChoice {
  bool broadcast = false;
  double pull_seconds = 0;       ///< Expected until the last target has all bytes.
  double broadcast_seconds = 0;  ///< The same; 0 when a broadcast is impossible.
  std::string reason;            ///< For logs.

  bool operator==(const TransportChoice&) const = default;
};

/// Why `target` cannot take part in a broadcast to `batch`, which may have targets already; empty
/// when it can: it is in the source's domain, and on a GPU of its own.
std::string Misfit(const BroadcastBatch& batch, const BroadcastMember& target);

/// Pulls unless a broadcast is possible and expected to end earlier. Impossible with fewer than two
/// targets, without NCCL, and with a Misfit. Rates that are not positive mean pulls.
TransportChoice ChooseTransport(const BroadcastBatch& batch, const TransportRates& rates);

}  // namespace rouse::transfer
