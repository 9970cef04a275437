#include "agent/transfer/registered_arena.h"

#include <pthread.h>

#include <string>
#include <utility>

namespace rouse::transfer {

RegisteredArena::RegisteredArena(std::shared_ptr<ucx::Context> context,
                                 std::shared_ptr<memory::Arena> arena, Register how)
    : context_(std::move(context)),
      arena_(std::move(arena)),
      register_(std::move(how)),
      slots_(arena_->slab_count()) {}

std::shared_ptr<RegisteredArena> RegisteredArena::Create(std::shared_ptr<ucx::Context> context,
                                                         std::shared_ptr<memory::Arena> arena,
                                                         Register how) {
  std::shared_ptr<RegisteredArena> out(
      new RegisteredArena(std::move(context), std::move(arena), std::move(how)));
  out->thread_ = std::jthread([&self = *out](const std::stop_token& stop) {
    ::pthread_setname_np(::pthread_self(), "ucx-register");
    for (std::size_t i = 0; i < self.slots_.size() && !stop.stop_requested(); ++i) {
      // Why it failed is told to whoever asks for the slab, whose attempt fails alike.
      if (!self.Slab(i).ok()) return;
    }
  });
  return out;
}

RegisteredArena::~RegisteredArena() = default;

Result<const ucx::RegisteredMemory*> RegisteredArena::Slab(std::size_t index) {
  std::unique_lock lock(mutex_);
  Slot& slot = slots_[index];
  changed_.wait(lock, [&] { return slot.memory || !slot.taken; });
  if (slot.memory) return &*slot.memory;
  slot.taken = true;
  lock.unlock();
  auto memory = register_(context_, arena_->SlabSpan(index));
  lock.lock();
  slot.taken = false;
  if (memory.ok()) slot.memory = *std::move(memory);
  changed_.notify_all();
  if (!memory.ok()) return memory.status().WithContext("slab " + std::to_string(index));
  return &*slot.memory;
}

}  // namespace rouse::transfer
