// libFuzzer's entry; ROUSE_FUZZ names the harness.

#include <cstddef>

#include "agent/tests/fuzz/harness.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  rouse::fuzz::ROUSE_FUZZ({reinterpret_cast<const char*>(data), size});
  return 0;
}
