// GPU memory that stands in for weights, over a stand-in for libcuda whose memory is memfds.

#include <vector>

#include "connector/src/driver.h"
#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

namespace {

constexpr size_t kLarge = size_t{200} << 20;

char* Allocate(size_t bytes) {
  rouse::connector::driver_library = rouse::kFakeCuda;
  return static_cast<char*>(rouse_gpu_stand_in_allocate(bytes, 0, nullptr));
}

void FreeStandIn(char* address, size_t bytes) {
  rouse_gpu_stand_in_free(address, bytes, 0, nullptr);
}

uint64_t Number(const char* pointer) {
  return reinterpret_cast<uint64_t>(pointer);
}

}  // namespace

TEST_CASE("Large allocations that stand in for weights share one piece of memory", "[connector]") {
  NoDescriptorLeak no_leak;
  char* const probe = Allocate(kLarge);
  FreeStandIn(probe, kLarge);
  const int creates = CreatesLeft();
  std::vector<char*> all;
  for (int i = 0; i < 50; ++i) {
    all.push_back(Allocate(kLarge + i));
    REQUIRE(all.back() != nullptr);
    CHECK(rouse_gpu_stand_in_holds(Number(all.back()) + kLarge + i - 1) == 1);
  }
  CHECK(creates - CreatesLeft() == 1);
  CHECK(rouse_gpu_stand_in_bytes() == 50 * kLarge + 49 * 50 / 2);
  // All of each is there to be written, and what is written shows in the others.
  all.front()[kLarge - 1] = 'a';
  all.back()[kLarge - 1] = 'b';
  CHECK(all.front()[kLarge - 1] == 'b');
  for (size_t i = 0; i < all.size(); ++i) FreeStandIn(all[i], kLarge + i);
  CHECK(rouse_gpu_stand_in_bytes() == 0);
  CHECK(rouse_gpu_stand_in_holds(Number(all.front())) == 0);
}

TEST_CASE("Small allocations beside them have memory of their own", "[connector]") {
  char* const large = Allocate(kLarge);
  constexpr size_t kSmall = ROUSE_GPU_STAND_IN_LEAST - 1;
  char* const one = Allocate(kSmall);
  char* const two = Allocate(kSmall);
  REQUIRE(one != nullptr);
  REQUIRE(two != nullptr);
  std::memset(one, '1', kSmall);
  std::memset(two, '2', kSmall);
  std::memset(large, 'l', kLarge);
  CHECK(one[0] == '1');
  CHECK(one[kSmall - 1] == '1');
  CHECK(rouse_gpu_stand_in_holds(Number(one)) == 0);
  CHECK(rouse_gpu_stand_in_bytes() == kLarge);
  FreeStandIn(one, kSmall);
  FreeStandIn(large, kLarge);
  CHECK(two[kSmall - 1] == '2');
  FreeStandIn(two, kSmall);
}

TEST_CASE("Memory that stands in for weights cannot be had without any memory", "[connector]") {
  NoDescriptorLeak no_leak;
  FreeStandIn(Allocate(kLarge), kLarge);
  const int creates = CreatesLeft();
  CreatesLeft() = 0;
  CHECK(Allocate(kLarge) == nullptr);
  CHECK_THAT(rouse_last_error(), Contains("CUDA_ERROR_OUT_OF_MEMORY"));
  CreatesLeft() = creates;
  CHECK(Allocate(SIZE_MAX) == nullptr);
  CHECK(Allocate(size_t{1} << 47) == nullptr);
  char* const large = Allocate(kLarge);
  REQUIRE(large != nullptr);
  FreeStandIn(large, kLarge);
}
