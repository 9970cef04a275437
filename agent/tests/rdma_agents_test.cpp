// Whole agents over real verbs, in the virtual machine of `make test-rdma` (see rdma_test.cpp).

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/rdma_device.h"

namespace rouse::agent {
namespace {

using test::PacketsReceived;
using Environment = std::map<std::string, std::string>;

constexpr std::chrono::seconds kLongest{120};  // emulated, and maybe busy

Environment Over(const std::string& tls, const std::string& devices, Environment more = {}) {
  more.insert({{"UCX_TLS", tls}, {"UCX_NET_DEVICES", devices}, {"ROUSE_LISTEN_HOST", "127.0.0.1"}});
  return more;
}

Environment TargetOf(Environment environment) {
  environment.insert({{"ROUSE_PATH", "Peer"}, {"ROUSE_WEIGHTS_FALLBACK", "None"}});
  return environment;
}

void PublishOn(const AgentProcess& agent, const FakeOperator& fake_operator, const std::string& pod,
               const std::string& bytes) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  const auto published = engine->CreateFillPublish(TestIdentity(), 0, bytes);
  REQUIRE(published.ok());
  REQUIRE(published->type() == "Ok");
  INFO(agent.log());
  REQUIRE(fake_operator.WaitFor(
      pod, [](const AgentReport& report) { return report.weights && report.weights->servable; },
      kLongest));
}

AgentReport AwaitServable(const AgentProcess& agent, const FakeOperator& fake_operator,
                          const std::string& pod) {
  const bool servable = fake_operator.WaitFor(
      pod, [](const AgentReport& report) { return report.weights && report.weights->servable; },
      kLongest);
  INFO(agent.log());
  REQUIRE(servable);
  return *fake_operator.Last(pod);
}

std::string ReadBack(const AgentProcess& agent) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  const auto got = engine->AwaitAndRead(0);
  INFO(got.status().ToString());
  REQUIRE(got.ok());
  return *got;
}

/// The link is down while this lives.
class LinkDown {
 public:
  explicit LinkDown(std::string interface) : interface_(std::move(interface)) {
    REQUIRE(::system(("ip link set dev " + interface_ + " down").c_str()) == 0);
  }
  ~LinkDown() {
    static_cast<void>(::system(("ip link set dev " + interface_ + " up").c_str()) == 0);
    // RDMA devices follow a moment later.
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  LinkDown(const LinkDown&) = delete;
  LinkDown& operator=(const LinkDown&) = delete;

 private:
  const std::string interface_;
};

/// For this thread and the processes that it starts, there are no RDMA devices to open: like a
/// container that was not given them.
class WithoutDevices {
 public:
  WithoutDevices() {
    REQUIRE(::unshare(CLONE_NEWNS) == 0);
    REQUIRE(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
    REQUIRE(::mount("none", "/dev/infiniband", "tmpfs", 0, nullptr) == 0);
  }
  ~WithoutDevices() { ::umount2("/dev/infiniband", MNT_DETACH); }
  WithoutDevices(const WithoutDevices&) = delete;
  WithoutDevices& operator=(const WithoutDevices&) = delete;
};

TEST_CASE("an agent takes its weights over rc, and says so") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes((20u << 20) + 512, 1);
  AgentProcess source("demo-0", fake_operator.url(), Over("rc", "rxe0:1"));
  PublishOn(source, fake_operator, "demo-0", bytes);
  AgentProcess target("demo-1", fake_operator.url(), TargetOf(Over("rc", "rxe1:1")));
  const AgentReport report = AwaitServable(target, fake_operator, "demo-1");
  CHECK(report.transport == "rc_verbs/rxe1:1");
  CHECK(report.transport_fallback.empty());
  const std::string metrics = MetricsOf(report);
  CHECK_THAT(metrics, Catch::Contains("rouse_pull_bytes_total{transport=\"rc_verbs/rxe1:1\"}") &&
                          Catch::Contains("rouse_pull_fallbacks_total 0"));
  CHECK_THAT(target.log(), Catch::Contains("2 of 2 usable ports"));
  CHECK(ReadBack(target) == bytes);
}

TEST_CASE("when the link to its source goes down an agent goes on with another source") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(48u << 20, 2);
  AgentProcess far("demo-0", fake_operator.url(), Over("rc", "rxe0:1"));
  PublishOn(far, fake_operator, "demo-0", bytes);
  AgentProcess near("demo-1", fake_operator.url(), Over("rc", "rxe1:1"));
  PublishOn(near, fake_operator, "demo-1", bytes);
  std::vector<Peer> peers;
  for (const char* pod : {"demo-0", "demo-1"}) {
    peers.push_back({.pod = pod, .node = "n", .address = fake_operator.Last(pod)->address});
  }
  fake_operator.NamePeers(peers);  // the far one first
  const std::uint64_t before = PacketsReceived("rxe1");
  AgentProcess target("demo-2", fake_operator.url(), TargetOf(Over("rc", "rxe1:1")));
  // Bytes flow: 2 MiB are there.
  REQUIRE(Eventually([&] { return PacketsReceived("rxe1") > before + 512; }, kLongest));
  {
    const LinkDown down("veth0");
    AwaitServable(target, fake_operator, "demo-2");
  }
  CHECK(ReadBack(target) == bytes);
  CHECK_THAT(target.log(), Catch::Contains("weights are not pulled from this peer any more"));
}

TEST_CASE("an agent whose container was not given the devices reports that it fell back to TCP") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(8u << 20, 3);
  AgentProcess source("demo-0", fake_operator.url(), Over("rc,tcp", "all"));
  PublishOn(source, fake_operator, "demo-0", bytes);
  const WithoutDevices hidden;
  AgentProcess target("demo-1", fake_operator.url(), TargetOf(Over("rc,tcp", "all")));
  const AgentReport report = AwaitServable(target, fake_operator, "demo-1");
  CHECK_THAT(report.transport, Catch::StartsWith("tcp/"));
  CHECK_THAT(report.transport_fallback,
             Catch::Contains("2 active RDMA ports") &&
                 Catch::Contains("the agent's container has no /dev/infiniband/uverbs0"));
  CHECK_THAT(MetricsOf(report), Catch::Contains("rouse_pull_fallbacks_total 1"));
  CHECK_THAT(target.log(), Catch::Contains("fallback from RDMA to TCP"));
  CHECK(ReadBack(target) == bytes);
}

}  // namespace
}  // namespace rouse::agent
