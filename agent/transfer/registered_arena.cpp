#include "agent/transfer/registered_arena.h"

#include <string>

namespace rouse::transfer {

Result<std::shared_ptr<RegisteredArena>> RegisteredArena::Create(
    std::shared_ptr<ucx::Context> context, std::shared_ptr<memory::Arena> arena) {
  std::shared_ptr<RegisteredArena> out(new RegisteredArena(context, std::move(arena)));
  for (std::size_t i = 0; i < out->arena_->slab_count(); ++i) {
    auto slab = ucx::RegisteredMemory::Register(context, out->arena_->SlabSpan(i));
    if (!slab.ok()) return slab.status().WithContext("slab " + std::to_string(i));
    out->slabs_.push_back(*std::move(slab));
  }
  return out;
}

}  // namespace rouse::transfer
