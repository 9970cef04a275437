#include "agent/transfer/transport_choice.h"

#include <algorithm>

namespace rouse::transfer {
namespace {

// Why `batch` cannot be broadcast to; empty when it can.
std::string Obstacle(const BroadcastBatch& batch) {
  if (batch.targets.size() < 2) return "fewer than two targets";
  if (!batch.library) return "the source has no NCCL";
  BroadcastBatch before{.source = batch.source, .targets = {}};
  for (const BroadcastMember& target : batch.targets) {
    if (std::string misfit = Misfit(before, target); !misfit.empty()) return misfit;
    before.targets.push_back(target);
  }
  return "";
}

std::string Seconds(double seconds) {
  return std::to_string(static_cast<long>(seconds * 1000 + 0.5)) + " ms";
}

}  // namespace

std::string Misfit(const BroadcastBatch& batch, const BroadcastMember& target) {
  if (target.domain.empty() || target.domain != batch.source.domain) {
    return "not all of one NVLink domain";
  }
  if (target.gpu.empty() || batch.source.gpu.empty()) return "a GPU is unknown";
  const auto same = [&](const BroadcastMember& other) { return other.gpu == target.gpu; };
  if (same(batch.source) || std::any_of(batch.targets.begin(), batch.targets.end(), same)) {
    return "two on GPU " + target.gpu;
  }
  return "";
}

TransportChoice ChooseTransport(const BroadcastBatch& batch, const TransportRates& rates) {
  TransportChoice choice;
  const auto bytes = static_cast<double>(batch.bytes);
  const auto targets = static_cast<double>(batch.targets.size());
  if (!(rates.pull > 0 && rates.egress > 0 && rates.broadcast > 0 && rates.setup_seconds >= 0)) {
    choice.reason = "pulls: no rates are known";
    return choice;
  }
  choice.pull_seconds = bytes * std::max(1 / rates.pull, targets / rates.egress);
  if (const std::string obstacle = Obstacle(batch); !obstacle.empty()) {
    choice.reason = "pulls: " + obstacle;
    return choice;
  }
  choice.broadcast_seconds = rates.setup_seconds + bytes / rates.broadcast;
  choice.broadcast = choice.broadcast_seconds < choice.pull_seconds;
  choice.reason = std::string(choice.broadcast ? "broadcast" : "pulls") + ": " +
                  Seconds(choice.pull_seconds) + " by pulls, " + Seconds(choice.broadcast_seconds) +
                  " by broadcast";
  return choice;
}

}  // namespace rouse::transfer
