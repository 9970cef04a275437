#include "agent/tests/transfer_fixture.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "agent/memory/copy_engine.h"
#include "common/tests/unwatched.h"

namespace rouse::transfer {

void Must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

std::shared_ptr<memory::Arena> RandomArena(std::uint64_t bytes, std::uint64_t slab_bytes,
                                           std::uint64_t seed,
                                           std::shared_ptr<const memory::Memory> memory) {
  std::shared_ptr<memory::Arena> arena = Must(memory::Arena::Create({.bytes = bytes,
                                                                     .memory = std::move(memory),
                                                                     .slab_bytes = slab_bytes,
                                                                     .name = "test-source"}));
  const Unwatched unwatched;
  std::uint64_t state = seed * 2 + 1;
  const auto span = arena->span();
  for (std::size_t i = 0; i < span.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const std::uint64_t word = state ^ (state >> 29);
    std::memcpy(span.data() + i, &word, std::min<std::size_t>(8, span.size() - i));
  }
  return arena;
}

WeightManifest ManifestOf(const memory::Arena& arena, std::uint32_t rank,
                          std::uint64_t chunk_bytes) {
  WeightManifest manifest;
  manifest.identity = {{"model", "test"}};
  manifest.rank = rank;
  manifest.arena_bytes = arena.bytes();
  manifest.chunk_bytes = chunk_bytes;
  manifest.allocations = {{.offset = 0, .bytes = arena.bytes()}};
  manifest.chunk_digests = Must(memory::DigestChunks(*Must(arena.memory().NewCopyEngine(2)), arena,
                                                     {.chunk_bytes = chunk_bytes}));
  return manifest;
}

PullSource SourceOf(const OpenResponse& answer, std::size_t index) {
  return {.name = "test/source-" + std::to_string(index),
          .worker_address = answer.worker_address,
          .rank = answer.ranks.at(index)};
}

PullSource Repeated(const OpenResponse& answer, std::uint64_t bytes) {
  PullSource source = SourceOf(answer);
  const RemoteRank once = source.rank;
  for (auto& rank = source.rank; rank.manifest.arena_bytes < bytes;) {
    rank.manifest.arena_bytes += once.manifest.arena_bytes;
    rank.slabs.insert(rank.slabs.end(), once.slabs.begin(), once.slabs.end());
    rank.manifest.chunk_digests.insert(rank.manifest.chunk_digests.end(),
                                       once.manifest.chunk_digests.begin(),
                                       once.manifest.chunk_digests.end());
  }
  return source;
}

std::shared_ptr<RegisteredArena> EmptyArena(std::shared_ptr<ucx::Context> context,
                                            std::uint64_t bytes, std::uint64_t slab_bytes) {
  std::shared_ptr<memory::Arena> arena = Must(
      memory::Arena::Create({.bytes = bytes, .slab_bytes = slab_bytes, .name = "test-target"}));
  return RegisteredArena::Create(std::move(context), std::move(arena));
}

void LookAt(std::span<const std::byte> bytes) {
  constexpr std::size_t kEvery = 16u << 10;
  volatile std::byte seen{};
  for (std::size_t at = 0; at < bytes.size(); at += kEvery) seen = bytes[at];
  static_cast<void>(seen);
}

bool SameBytes(const memory::Arena& a, const memory::Arena& b) {
  LookAt(a.span());
  LookAt(b.span());
  const Unwatched unwatched;
  return a.bytes() == b.bytes() && std::memcmp(a.span().data(), b.span().data(), a.bytes()) == 0;
}

ScopedVariable::ScopedVariable(std::string name, const std::string& value)
    : name_(std::move(name)) {
  ::setenv(name_.c_str(), value.c_str(), 1);
}
ScopedVariable::~ScopedVariable() {
  ::unsetenv(name_.c_str());
}

}  // namespace rouse::transfer
