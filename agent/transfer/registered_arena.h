// An arena whose slabs are registered with UCX: what a pull writes into.
//
//   auto arena = RegisteredArena::Create(context, memory);       // returns at once
//   auto slab = (*arena)->Slab(3);                               // registered when this returns
//
// Registering with an RDMA device pins every page, which for a whole arena takes longer than the
// wire does. So it runs beside the transfer: a thread ("ucx-register") goes through the slabs in
// order, and whoever needs one that is not its turn yet registers it himself. A slab stays
// registered as long as the arena lives, so the next pull into it waits for nothing.

#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/ucx/context.h"
#include "common/result.h"

namespace rouse::transfer {

/// Threads: every method from any thread.
class RegisteredArena {
 public:
  using Register = std::function<Result<ucx::RegisteredMemory>(std::shared_ptr<ucx::Context>,
                                                               std::span<std::byte>)>;

  /// Begins to register the slabs. `how` stands in for the real thing in tests.
  static std::shared_ptr<RegisteredArena> Create(std::shared_ptr<ucx::Context> context,
                                                 std::shared_ptr<memory::Arena> arena,
                                                 Register how = &ucx::RegisteredMemory::Register);
  /// Waits for the registration under way.
  ~RegisteredArena();
  RegisteredArena(const RegisteredArena&) = delete;
  RegisteredArena& operator=(const RegisteredArena&) = delete;

  /// Slab `index`, registered: at once if it is already, else this takes as long as registering one
  /// slab does. Never null; valid as long as the arena. Errors are RegisteredMemory::Register's,
  /// with the slab named; asking again tries again.
  Result<const ucx::RegisteredMemory*> Slab(std::size_t index);

  memory::Arena& arena() const { return *arena_; }
  const std::shared_ptr<memory::Arena>& shared_arena() const { return arena_; }
  const std::shared_ptr<ucx::Context>& context() const { return context_; }

 private:
  struct Slot {
    bool taken = false;  // somebody registers it
    std::optional<ucx::RegisteredMemory> memory;
  };

  RegisteredArena(std::shared_ptr<ucx::Context> context, std::shared_ptr<memory::Arena> arena,
                  Register how);

  const std::shared_ptr<ucx::Context> context_;
  const std::shared_ptr<memory::Arena> arena_;
  const Register register_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;  // guarded; after arena_: unregistered before it is unmapped
  std::jthread thread_;      // last: it uses all of the above
};

}  // namespace rouse::transfer
