// Registering an arena beside the transfer.

#include <atomic>
#include <catch2/catch.hpp>
#include <future>
#include <latch>
#include <map>

#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/pull.h"

namespace rouse::transfer {
namespace {

constexpr std::uint64_t kGiB = 1u << 30;

std::shared_ptr<memory::Arena> Slabs(std::uint64_t bytes, std::uint64_t slab_bytes) {
  return Must(memory::Arena::Create({.bytes = bytes, .slab_bytes = slab_bytes, .name = "test"}));
}

std::shared_ptr<ucx::Context> Tcp() {
  const ScopedVariable variable("UCX_TLS", "tcp");
  return Must(ucx::Context::Create());
}

TEST_CASE("slabs are used while a later one is still being registered", "[transfer]") {
  const auto memory = Slabs(4 * kMiB, kMiB);
  std::latch go(1);
  const auto arena = RegisteredArena::Create(
      Tcp(), memory, [&](std::shared_ptr<ucx::Context> context, std::span<std::byte> range) {
        if (range.data() == memory->SlabSpan(2).data()) go.wait();
        return ucx::RegisteredMemory::Register(std::move(context), range);
      });
  for (const std::size_t i : {0, 1, 3}) {
    REQUIRE(Must(arena->Slab(i))->range().data() == memory->SlabSpan(i).data());
  }
  auto third = std::async(std::launch::async, [&] { return Must(arena->Slab(2)); });
  REQUIRE(third.wait_for(std::chrono::milliseconds(100)) == std::future_status::timeout);
  go.count_down();
  REQUIRE(third.get()->range().data() == memory->SlabSpan(2).data());
}

TEST_CASE("each slab is registered once, whoever asks, and stays so for the next pull",
          "[transfer]") {
  const auto memory = Slabs(64 * kMiB, kMiB);
  std::mutex mutex;
  std::map<const void*, int> count;
  const auto arena = RegisteredArena::Create(
      Tcp(), memory, [&](std::shared_ptr<ucx::Context> context, std::span<std::byte> range) {
        {
          const std::scoped_lock lock(mutex);
          ++count[range.data()];
        }
        return ucx::RegisteredMemory::Register(std::move(context), range);
      });
  std::vector<const ucx::RegisteredMemory*> first;
  for (std::size_t i = memory->slab_count(); i-- > 0;) first.push_back(Must(arena->Slab(i)));
  for (std::size_t i = memory->slab_count(); i-- > 0;) {
    REQUIRE(Must(arena->Slab(i)) == first[memory->slab_count() - 1 - i]);
  }
  REQUIRE(count.size() == 64);
  for (const auto& [range, times] : count) REQUIRE(times == 1);
}

TEST_CASE("no registered region is over 4 GiB, however large the arena", "[transfer]") {
  REQUIRE(memory::Arena::Create({.bytes = 9 * kGiB, .slab_bytes = 4 * kGiB + 4096, .name = "test"})
              .status()
              .code() == StatusCode::kInvalidArgument);
  const auto memory = Slabs(9 * kGiB, 4 * kGiB);  // takes no memory until it is touched
  const auto arena = RegisteredArena::Create(Tcp(), memory);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < memory->slab_count(); ++i) {
    const auto bytes = Must(arena->Slab(i))->range().size();
    REQUIRE(bytes <= 4 * kGiB);
    total += bytes;
  }
  REQUIRE(total == 9 * kGiB);
}

TEST_CASE("a slab that cannot be registered is an error that names it, and is tried again",
          "[transfer]") {
  const auto memory = Slabs(3 * kMiB, kMiB);
  std::atomic<bool> refuse{true};
  const auto arena = RegisteredArena::Create(
      Tcp(), memory,
      [&](std::shared_ptr<ucx::Context> context,
          std::span<std::byte> range) -> Result<ucx::RegisteredMemory> {
        if (refuse && range.data() == memory->SlabSpan(1).data()) {
          return Status(StatusCode::kResourceExhausted, "locked memory is used up");
        }
        return ucx::RegisteredMemory::Register(std::move(context), range);
      });
  const auto refused = arena->Slab(1);
  REQUIRE(refused.status().code() == StatusCode::kResourceExhausted);
  REQUIRE_THAT(refused.status().message(), Catch::Contains("slab 1") && Catch::Contains("locked"));
  REQUIRE(arena->Slab(0).ok());
  refuse = false;
  REQUIRE(arena->Slab(1).ok());
  REQUIRE(arena->Slab(2).ok());
}

TEST_CASE("a pull into an arena that cannot be registered ends with the reason", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  TestSource source({"--bytes", std::to_string(4 * kMiB)});
  const auto arena = RegisteredArena::Create(
      Must(ucx::Context::Create()), Slabs(4 * kMiB, kMiB),
      [](std::shared_ptr<ucx::Context>, std::span<std::byte>) -> Result<ucx::RegisteredMemory> {
        return Status(StatusCode::kResourceExhausted, "locked memory is used up");
      });
  const Status status = Pull(SourceOf(source.answer()), *arena, {}, {}, nullptr).status();
  REQUIRE(status.code() == StatusCode::kResourceExhausted);
  REQUIRE_THAT(status.message(), Catch::Contains("slab"));
}

}  // namespace
}  // namespace rouse::transfer
