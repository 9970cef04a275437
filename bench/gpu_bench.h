// What the benchmarks in GPU memory share.

#pragma once

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <vector>

#include "agent/cuda/copy_engine.h"
#include "agent/memory/arena.h"
#include "common/result.h"

namespace rouse {

/// A benchmark that fails at anything ends, with the reason.
inline void Must(const Status& status) {
  if (status.ok()) return;
  std::cerr << "pid " << ::getpid() << ": " << status.ToString() << std::endl;
  std::exit(1);
}

template <typename T>
T Must(Result<T> result) {
  Must(result.status());
  return *std::move(result);
}

/// In seconds.
inline double Since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Random bytes, another 8 of them in front of each 64 MiB, so that no two chunks need be alike.
inline void Fill(const cuda::Device& device, memory::Arena& arena) {
  std::vector<std::byte> piece(64u << 20);
  std::uint64_t state = 1;
  for (std::size_t i = 0; i < piece.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(piece.data() + i, &state, 8);
  }
  for (std::uint64_t at = 0; at < arena.bytes(); at += piece.size()) {
    std::memcpy(piece.data(), &at, sizeof at);
    Must(cuda::Upload(device, arena.span().data() + at, piece));
  }
}

}  // namespace rouse
