#include "agent/transfer/staging.h"

#include <algorithm>

#include "common/log.h"

namespace rouse::transfer {

Result<std::shared_ptr<Staging::Buffers>> Staging::Of(
    const std::string& lease, const memory::Memory& gpu,
    const std::function<bool(const std::string&)>& lives) {
  for (const auto& buffers : all_) {
    if (buffers->lease == lease) return buffers;
  }
  for (const auto& buffers : all_) {
    const bool busy = std::count(buffers->busy.begin(), buffers->busy.end(), true) > 0;
    if (busy || lives(buffers->lease)) continue;
    buffers->lease = lease;
    return buffers;
  }
  if (all_.size() >= max_leases_) {
    return Status(StatusCode::kResourceExhausted,
                  "weights in GPU memory are copied for " + std::to_string(max_leases_) +
                      " peers already; try again when a pull has ended, or another source");
  }
  auto buffers = std::make_shared<Buffers>();
  buffers->lease = lease;
  ROUSE_ASSIGN_OR_RETURN(buffers->arena, memory::Arena::Create({.bytes = bytes_ * kStageBuffers,
                                                                .slab_bytes = bytes_,
                                                                .name = "rouse-stage",
                                                                .populate = true}));
  auto pin = gpu.PinHost(buffers->arena->span());
  if (pin.ok()) {
    buffers->pin = *std::move(pin);
  } else {
    log::Warning("copies for peers will be slow", {{"error", pin.status().ToString()}});
  }
  all_.push_back(buffers);
  return buffers;
}

}  // namespace rouse::transfer
