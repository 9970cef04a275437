#include <catch2/catch.hpp>

#include "agent/cuda/device.h"

namespace rouse::cuda {
namespace {

TEST_CASE("a machine without a GPU is told from one with, with the reason", "[cuda]") {
  const auto count = DeviceCount();
  if (count.ok()) {
    CHECK(*count > 0);
    CHECK(Device::Open(*count).status().code() != StatusCode::kOk);
    return;
  }
  CHECK(count.status().code() == StatusCode::kUnavailable);
  CHECK_THAT(count.status().message(), Catch::Contains("driver"));
  CHECK(Device::Open(0).status() == count.status());
}

}  // namespace
}  // namespace rouse::cuda
