// GPU memory that is given back and taken again, over a stand-in for libcuda whose memory is
// memfds.

#include <cerrno>
#include <fstream>
#include <string>

#include "connector/src/driver.h"
#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

namespace {

/// An allocation of the process's pool.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    rouse::connector::driver_library = rouse::kFakeCuda;
    address_ = static_cast<char*>(rouse_gpu_pool_allocate(bytes, 0, nullptr));
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { Free(); }
  char* get() const { return address_; }
  void Free() {
    if (address_ != nullptr) rouse_gpu_pool_free(address_, bytes_, 0, nullptr);
    address_ = nullptr;
  }

 private:
  size_t bytes_;
  char* address_;
};

/// Bytes of the mappings of "GPU memory" in this process.
size_t MappedBytes() {
  std::ifstream maps("/proc/self/maps");
  size_t sum = 0;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (line.find("gpu-memory") != std::string::npos &&
        sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2) {
      sum += end - begin;
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("A GPU pool's memory is given back and comes back cleared at the same addresses",
          "[connector]") {
  NoDescriptorLeak no_leak;
  Memory first(kGranule), second(100), third(3 * kGranule);
  REQUIRE(first.get() != nullptr);
  REQUIRE(second.get() != nullptr);
  REQUIRE(third.get() != nullptr);
  CHECK(rouse_gpu_pool_bytes() == 5 * kGranule);
  CHECK(MappedBytes() == 5 * kGranule);
  std::memset(first.get(), 'f', kGranule);
  std::memset(third.get(), 't', 3 * kGranule);
  for (int round = 0; round < 3; ++round) {
    REQUIRE(rouse_gpu_pool_release() == 0);
    REQUIRE(rouse_gpu_pool_release() == 0);
    CHECK(MappedBytes() == 0);
    CHECK(rouse_gpu_pool_bytes() == 5 * kGranule);
    const int creates = CreatesLeft();
    REQUIRE(rouse_gpu_pool_restore() == 0);
    REQUIRE(rouse_gpu_pool_restore() == 0);
    // They lie side by side, so one piece of memory serves all three.
    CHECK(creates - CreatesLeft() == 1);
    CHECK(MappedBytes() == 5 * kGranule);
    CHECK(first.get()[kGranule - 1] == 0);
    CHECK(third.get()[3 * kGranule - 1] == 0);
    std::memset(third.get(), 't', 3 * kGranule);
  }
}

TEST_CASE("What is freed of a GPU pool goes back to the GPU, before and after a restore",
          "[connector]") {
  NoDescriptorLeak no_leak;
  Memory first(kGranule), second(kGranule), third(kGranule);
  second.Free();
  CHECK(MappedBytes() == 2 * kGranule);
  Memory again(kGranule);  // Into the gap.
  CHECK(again.get() == first.get() + kGranule);
  again.Free();
  REQUIRE(rouse_gpu_pool_release() == 0);
  REQUIRE(rouse_gpu_pool_restore() == 0);
  CHECK(MappedBytes() == 2 * kGranule);
  Memory more(2 * kGranule);
  CHECK(more.get() == third.get() + kGranule);
  REQUIRE(rouse_gpu_pool_release() == 0);
  REQUIRE(rouse_gpu_pool_restore() == 0);
  third.Free();  // Its memory came back in one piece with the one behind it.
  CHECK(MappedBytes() == 4 * kGranule);
  *more.get() = 'm';
  more.Free();
  CHECK(MappedBytes() == kGranule);
  *first.get() = 'f';
  first.Free();
  CHECK(MappedBytes() == 0);
  CHECK(rouse_gpu_pool_bytes() == 0);
}

TEST_CASE("A GPU pool is freed while its memory is given back", "[connector]") {
  Memory memory(kGranule);
  REQUIRE(rouse_gpu_pool_release() == 0);
  CHECK(rouse_gpu_pool_allocate(1, 0, nullptr) == nullptr);
  CHECK_THAT(rouse_last_error(), Contains("given back"));
  memory.Free();
  REQUIRE(rouse_gpu_pool_restore() == 0);
  CHECK(MappedBytes() == 0);
}

TEST_CASE("A GPU pool that gets no memory takes none, and can be asked again", "[connector]") {
  NoDescriptorLeak no_leak;
  Memory first(kGranule);
  CHECK(rouse_gpu_pool_allocate(SIZE_MAX, 0, nullptr) == nullptr);
  CHECK(rouse_gpu_pool_allocate(size_t{1} << 40, 0, nullptr) == nullptr);
  Memory second(kGranule), third(kGranule);
  second.Free();
  const int creates = CreatesLeft();
  CreatesLeft() = 0;
  CHECK(rouse_gpu_pool_allocate(kGranule, 0, nullptr) == nullptr);
  CHECK_THAT(rouse_last_error(), Contains("CUDA_ERROR_OUT_OF_MEMORY"));
  REQUIRE(rouse_gpu_pool_release() == 0);
  CreatesLeft() = 1;
  CHECK(rouse_gpu_pool_restore() == -ENOMEM);  // It needs two, one on each side of the gap.
  CHECK(MappedBytes() == 0);
  CreatesLeft() = creates;
  REQUIRE(rouse_gpu_pool_restore() == 0);
  CHECK(MappedBytes() == 2 * kGranule);
  *third.get() = 't';
}

TEST_CASE("The stacks of a GPU's threads are changed, and what they were is said", "[connector]") {
  rouse::connector::driver_library = rouse::kFakeCuda;
  size_t before = 0;
  REQUIRE(rouse_gpu_set_stack(16, &before) == 0);
  CHECK(before == 1024);
  REQUIRE(rouse_gpu_set_stack(before, &before) == 0);
  CHECK(before == 16);
  CHECK(OfFakeCuda<size_t>("rouse_fake_cuda_stack") == 1024);
  CHECK(rouse_gpu_set_stack(size_t{1} << 40, &before) == -EINVAL);
  CHECK(rouse_gpu_set_stack(16, nullptr) == -EINVAL);
}
