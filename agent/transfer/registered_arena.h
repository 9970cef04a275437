// An arena whose slabs are registered with UCX: what a pull writes into.

#pragma once

#include <memory>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/ucx/context.h"
#include "common/result.h"

namespace rouse::transfer {

/// Threads: const members from any thread.
class RegisteredArena {
 public:
  /// Registers every slab. Errors are RegisteredMemory::Register's, with the slab named.
  static Result<std::shared_ptr<RegisteredArena>> Create(std::shared_ptr<ucx::Context> context,
                                                         std::shared_ptr<memory::Arena> arena);

  memory::Arena& arena() const { return *arena_; }
  const std::shared_ptr<memory::Arena>& shared_arena() const { return arena_; }
  const ucx::RegisteredMemory& slab(std::size_t index) const { return slabs_[index]; }
  const std::shared_ptr<ucx::Context>& context() const { return context_; }

 private:
  RegisteredArena(std::shared_ptr<ucx::Context> context, std::shared_ptr<memory::Arena> arena)
      : context_(std::move(context)), arena_(std::move(arena)) {}

  std::shared_ptr<ucx::Context> context_;
  std::shared_ptr<memory::Arena> arena_;
  std::vector<ucx::RegisteredMemory> slabs_;  // after arena_: unregistered before it is unmapped
};

}  // namespace rouse::transfer
