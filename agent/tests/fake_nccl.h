// What a test tells the stand-in for libnccl.so.2 (fake_nccl.cpp), and what it has seen.

#pragma once

#include <cstddef>
#include <vector>

#include "agent/nccl/library.h"

namespace rouse::nccl {

struct FakeNccl {
  // To be told.
  int version = 22809;
  int polls = 3;  ///< After so many a call that is under way has its outcome; -1: never.
  Code init = Code::kSuccess;
  Code broadcast = Code::kSuccess;
  Code finalize = Code::kSuccess;
  const char* last_error = "";

  // Seen.
  int ranks = 0;
  int rank = 0;
  char first_byte_of_id = 0;
  int blocking = -1;
  std::vector<std::size_t> sizes;
  int aborted = 0;
  int destroyed = 0;

  // Its own.
  int left = 0;
  Code outcome = Code::kSuccess;
};

}  // namespace rouse::nccl
