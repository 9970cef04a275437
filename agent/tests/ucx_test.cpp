#include <stdlib.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <thread>
#include <vector>

#include "agent/ucx/context.h"
#include "agent/ucx/endpoint.h"
#include "agent/ucx/worker.h"

namespace rouse::ucx {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

template <typename T>
T Must(Result<T> result) {
  INFO(result.status().ToString());
  REQUIRE(result.ok());
  return *std::move(result);
}

Status Finish(Worker& worker, GetRequest& get) {
  const auto deadline = steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    if (const auto ended = get.Poll()) return *ended;
    if (steady_clock::now() > deadline) return DeadlineExceeded("get");
    worker.Progress();
  }
}

TEST_CASE("a read brings the bytes of another worker's registered memory", "[ucx]") {
  const auto context = Must(Context::Create());
  const auto source = Must(Worker::Create(context));
  const std::string address = Must(source->Address());
  const ProgressThread progress(*source, "test-source");
  std::vector<std::byte> there(300'000, std::byte{0x5a});
  std::vector<std::byte> here(300'000);
  const auto remote = Must(RegisteredMemory::Register(context, there));
  const auto local = Must(RegisteredMemory::Register(context, here));

  const auto worker = Must(Worker::Create(context));
  const auto endpoint = Must(Endpoint::Connect(*worker, address));
  const auto key = Must(endpoint->OpenKey(Must(remote.PackKey())));
  auto get = endpoint->Get({.into = std::span(here).subspan(1000, 200'000),
                            .memory = &local,
                            .from = remote.address() + 50'000,
                            .key = &key});
  REQUIRE(Finish(*worker, get) == Status());
  REQUIRE(here[999] == std::byte{0});
  REQUIRE(here[1000] == std::byte{0x5a});
  REQUIRE(here[200'999] == std::byte{0x5a});
  REQUIRE(here[201'000] == std::byte{0});
  REQUIRE(get.Poll() == Status());  // again and again
  REQUIRE(endpoint->status().ok());
  REQUIRE_THAT(endpoint->Transport(), Catch::Contains("/"));
}

TEST_CASE("a signal from another thread ends a worker's sleep", "[ucx]") {
  const auto worker = Must(Worker::Create(Must(Context::Create())));
  while (worker->Progress()) {
  }
  const auto start = steady_clock::now();
  std::jthread other([&] {
    std::this_thread::sleep_for(milliseconds(100));
    worker->Signal();
  });
  // Other events may end a sleep early, so sleep on until the signal can have come.
  while (steady_clock::now() - start < milliseconds(100)) {
    REQUIRE(worker->Wait(milliseconds(20'000)).ok());
    while (worker->Progress()) {
    }
  }
  REQUIRE(steady_clock::now() - start < milliseconds(10'000));
}

TEST_CASE("empty and oversized regions are refused", "[ucx]") {
  const auto context = Must(Context::Create());
  REQUIRE(RegisteredMemory::Register(context, {}).status().code() == StatusCode::kInvalidArgument);
  std::byte byte{};
  REQUIRE(
      RegisteredMemory::Register(context, {&byte, (std::size_t{4} << 30) + 1}).status().code() ==
      StatusCode::kInvalidArgument);
}

TEST_CASE("addresses and keys of impossible length are refused before UCX sees them", "[ucx]") {
  const auto context = Must(Context::Create());
  const auto worker = Must(Worker::Create(context));
  for (const std::size_t bytes : {0u, 1u, 15u, 20'000u}) {
    const auto endpoint = Endpoint::Connect(*worker, std::string(bytes, 'x'));
    REQUIRE(endpoint.status().code() == StatusCode::kInvalidArgument);
    REQUIRE_THAT(endpoint.status().message(), Catch::Contains("worker address"));
  }
  const auto endpoint = Must(Endpoint::Connect(*worker, Must(worker->Address())));
  for (const std::size_t bytes : {0u, 1u, 8u, 5'000u}) {
    const auto key = endpoint->OpenKey(std::string(bytes, 'x'));
    REQUIRE(key.status().code() == StatusCode::kInvalidArgument);
    REQUIRE_THAT(key.status().message(), Catch::Contains("remote key"));
  }
}

TEST_CASE("UCX that finds no device is an error that says where to look", "[ucx]") {
  ::setenv("UCX_TLS", "no_such_transport", 1);
  const auto context = Context::Create();
  ::unsetenv("UCX_TLS");
  REQUIRE(context.status().code() == StatusCode::kUnavailable);
  REQUIRE_THAT(context.status().message(), Catch::Contains("UCX_TLS"));
}

// Over which transport a context reaches itself.
std::string TransportOf(const ContextOptions& options) {
  const auto context = Must(Context::Create(options));
  const auto source = Must(Worker::Create(context));
  const ProgressThread progress(*source, "test-source");
  std::vector<std::byte> there(4096, std::byte{0x5a});
  std::vector<std::byte> here(4096);
  const auto remote = Must(RegisteredMemory::Register(context, there));
  const auto local = Must(RegisteredMemory::Register(context, here));
  const auto worker = Must(Worker::Create(context));
  const auto endpoint = Must(Endpoint::Connect(*worker, Must(source->Address())));
  const auto key = Must(endpoint->OpenKey(Must(remote.PackKey())));
  auto get = endpoint->Get({.into = here, .memory = &local, .from = remote.address(), .key = &key});
  REQUIRE(Finish(*worker, get) == Status());
  return endpoint->Transport();
}

TEST_CASE("network devices are pinned, unless the user has named his own", "[ucx]") {
  ::setenv("UCX_TLS", "tcp", 1);
  CHECK(TransportOf({.net_devices = {"lo"}, .max_rails = 2}) == "tcp/lo");
  ::setenv("UCX_NET_DEVICES", "no_such_device", 1);
  CHECK(Context::Create({.net_devices = {"lo"}}).status().code() == StatusCode::kUnavailable);
  ::setenv("UCX_NET_DEVICES", "lo", 1);
  CHECK(TransportOf({.net_devices = {"no_such_device"}}) == "tcp/lo");
  ::unsetenv("UCX_NET_DEVICES");
  ::unsetenv("UCX_TLS");
}

TEST_CASE("the transport is read out of UCX's own description", "[ucx]") {
  // As UCX 1.13 prints it over TCP, over shared memory, and over RDMA with two devices.
  REQUIRE(ParseTransport(R"(#
# UCP endpoint 
#
#               peer: <no debug data>
#                 lane[0]:  1:tcp/lo.0 md[1]                -> md[1]/tcp/sysdev[255] am am_bw#0 keepalive wireup
#
#                  rma_bw: mds #
)") == "tcp/lo");
  REQUIRE(ParseTransport(R"(
#                 lane[0]:  3:sysv/memory.0 md[2]           -> md[2]/sysv/sysdev[255] am am_bw#0 keepalive
#                 lane[1]:  4:posix/memory.0 md[3]          -> md[3]/posix/sysdev[255]
#                  get[0]: 0..<bcopy>..(inf)
)") == "sysv/memory");
  REQUIRE(ParseTransport(R"(
#                 lane[0]:  7:rc_mlx5/mlx5_0:1.0 md[4]      -> md[4]/ib/sysdev[1] rma_bw#0 am am_bw#0
#                 lane[1]:  9:rc_mlx5/mlx5_1:1.0 md[5]      -> md[5]/ib/sysdev[2] rma_bw#1
#                 lane[2]:  1:tcp/eth0.0 md[1]              -> md[1]/tcp/sysdev[255] wireup
)") == "rc_mlx5/mlx5_0:1,rc_mlx5/mlx5_1:1");
  REQUIRE(ParseTransport("").empty());
  REQUIRE(ParseTransport("lane[0]: nonsense -> ").empty());
}

}  // namespace
}  // namespace rouse::ucx
