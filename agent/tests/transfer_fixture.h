// What the tests of pulls share: arenas with known bytes, and peers in processes of their own.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/transfer/registered_arena.h"
#include "agent/transfer/source.h"

namespace rouse::transfer {

inline constexpr std::uint64_t kMiB = 1u << 20;

/// Throws std::runtime_error with the status unless it is ok.
void Must(const Status& status);
template <typename T>
T Must(Result<T> result) {
  Must(result.status());
  return *std::move(result);
}

/// An arena whose bytes follow from `seed`, in memory that the CPU can write.
std::shared_ptr<memory::Arena> RandomArena(
    std::uint64_t bytes, std::uint64_t slab_bytes, std::uint64_t seed,
    std::shared_ptr<const memory::Memory> memory = memory::HostMemory());

/// A manifest for `arena` with one allocation and every chunk's digest.
WeightManifest ManifestOf(const memory::Arena& arena, std::uint32_t rank,
                          std::uint64_t chunk_bytes);

/// Rank `index` of what a source answered, called "test/source-INDEX".
PullSource SourceOf(const OpenResponse& answer, std::size_t index = 0);

/// Rank 0 of what a source answered, said over and over until it is `bytes` long: a long pull from
/// a small source. The source's arena must be whole chunks, and `bytes` a multiple of it.
PullSource Repeated(const OpenResponse& answer, std::uint64_t bytes);

/// Reads one byte in 16 KiB: enough for ThreadSanitizer to find who still writes there.
void LookAt(std::span<const std::byte> bytes);
/// Looks at both, then compares all bytes unwatched.
bool SameBytes(const memory::Arena& a, const memory::Arena& b);

/// An arena without memory yet, registered with `context`.
std::shared_ptr<RegisteredArena> EmptyArena(std::shared_ptr<ucx::Context> context,
                                            std::uint64_t bytes, std::uint64_t slab_bytes);

/// Sets an environment variable until destroyed. UCX reads its variables when a Context is made.
class ScopedVariable {
 public:
  ScopedVariable(std::string name, const std::string& value);
  ~ScopedVariable();
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  std::string name_;
};

/// agent_transfer_peer in a process of its own (see transfer_peer_main.cpp), which ends with this
/// object.
class PeerProcess {
 public:
  explicit PeerProcess(const std::vector<std::string>& arguments);
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  /// The next line of its standard output. Throws when it has ended.
  std::string ReadLine();
  void WriteLine(const std::string& line);
  /// To the process, or to it and its children.
  void Signal(int signal);
  void SignalGroup(int signal);
  bool Alive() const;

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
  std::string rest_;
};

/// A peer that publishes RandomArena(bytes, slab_bytes, seed) and serves until destroyed.
class TestSource : public PeerProcess {
 public:
  explicit TestSource(std::vector<std::string> arguments);
  /// What it answered last.
  const OpenResponse& answer() const { return answer_; }
  /// Asks again: a new lease.
  void Reopen();

 private:
  OpenResponse answer_;
};

}  // namespace rouse::transfer
