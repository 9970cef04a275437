#include <catch2/catch.hpp>

#include "agent/fabric/fallback.h"

namespace rouse::fabric {
namespace {

RdmaPort Port(const std::string& device, bool active = true, bool accessible = true) {
  return {.device = device,
          .port = 1,
          .active = active,
          .accessible = accessible,
          .device_node = "/dev/infiniband/uverbs0",
          .gbit_per_s = 400,
          .place = {}};
}

const Topology kOne{{Port("mlx5_0")}};

TEST_CASE("TCP on a node with RDMA is a fallback that says what is there and what may help",
          "[fabric]") {
  const auto reason = FallbackReason("tcp/eth0", kOne, {});
  REQUIRE(reason);
  CHECK(*reason ==
        "weights came over tcp/eth0 although this node has the active RDMA port mlx5_0:1: the peer "
        "has none that mlx5_0:1 can reach, or UCX refused it (see the agents' logs). If TCP is "
        "meant, set UCX_TLS=tcp for the agent");
}

TEST_CASE("a container without the device is told so", "[fabric]") {
  const Topology hidden{{Port("mlx5_0", true, false), Port("mlx5_1", true, false)}};
  const auto reason = FallbackReason("tcp/eth0", hidden, {});
  REQUIRE(reason);
  CHECK_THAT(*reason, Catch::Contains("2 active RDMA ports (mlx5_0:1 to mlx5_1:1)") &&
                          Catch::Contains("has no /dev/infiniband/uverbs0") &&
                          Catch::Contains("spec.template"));
}

TEST_CASE("one of several transports that is TCP is a fallback", "[fabric]") {
  CHECK(FallbackReason("rc_mlx5/mlx5_0:1,tcp/eth0", kOne, {}));
}

TEST_CASE("what is no TCP is no fallback", "[fabric]") {
  for (const char* transport :
       {"rc_mlx5/mlx5_0:1", "rc_verbs/rxe0:1,rc_verbs/rxe1:1", "dc_mlx5/mlx5_0:1", "ud_verbs/x:1",
        "cma/memory", "sysv/memory,cma/memory", "node/host", "node/cuda:0", "self/memory", ""}) {
    INFO(transport);
    CHECK_FALSE(FallbackReason(transport, kOne, {}));
  }
}

TEST_CASE("a node without an active port has nothing to fall back from", "[fabric]") {
  CHECK_FALSE(FallbackReason("tcp/eth0", {}, {}));
  CHECK_FALSE(FallbackReason("tcp/eth0", {{Port("mlx5_0", false)}}, {}));
}

TEST_CASE("settings that leave RDMA out make TCP what is meant", "[fabric]") {
  const auto falls_back = [](std::optional<std::string> tls, std::optional<std::string> devices) {
    return FallbackReason("tcp/eth0", kOne, {.tls = tls, .net_devices = devices}).has_value();
  };
  for (const char* tls : {"tcp", "tcp,self", "^ib", "^rc,dc,ud", "tcp,cuda_ipc", ""}) {
    INFO("UCX_TLS=" << tls);
    CHECK_FALSE(falls_back(tls, std::nullopt));
  }
  for (const char* tls : {"all", "rc,tcp", "rc_x,tcp", "\\rc_verbs,tcp", "ib", "dc", "ud,tcp",
                          "^sysv", "^rc", "^tcp_sockcm"}) {
    INFO("UCX_TLS=" << tls);
    CHECK(falls_back(tls, std::nullopt));
  }
  CHECK_FALSE(falls_back(std::nullopt, "eth0"));
  CHECK_FALSE(falls_back(std::nullopt, "eth0,mlx5_1:1"));
  CHECK_FALSE(falls_back(std::nullopt, "^mlx5_0:1"));
  CHECK(falls_back(std::nullopt, "all"));
  CHECK(falls_back(std::nullopt, "eth0,mlx5_0:1"));
  CHECK(falls_back("all", "^mlx5_1:1"));
}

}  // namespace
}  // namespace rouse::fabric
