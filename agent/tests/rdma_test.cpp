// Pulls over real verbs: two soft-RoCE devices on the two ends of one cable, the source on rxe0,
// the target on rxe1. Runs in the virtual machine of `make test-rdma`, as root; fails anywhere
// else.

#include <signal.h>
#include <stdlib.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>

#include "agent/fabric/fallback.h"
#include "agent/tests/rdma_device.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/host_context.h"
#include "agent/transfer/pull.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::PacketsReceived;

// One frame of the virtual cable carries this at most.
constexpr std::uint64_t kMtu = 4096;
const std::string kOverRc = "rc_verbs/rxe1:1";

// Emulated, the wire carries some 10 MB/s: this takes a minute unless something ends it.
constexpr std::uint64_t kLongBytes = 512 * kMiB;
const PullOptions kPatient = {.progress_deadline = milliseconds(20'000),
                              .piece_deadline = milliseconds(60'000)};
const PullOptions kHasty = {.piece_bytes = 256 << 10,
                            .window = 4,
                            .progress_deadline = milliseconds(4'000),
                            .piece_deadline = milliseconds(8'000)};
// The deadline, UCX's own two seconds to close, and room for a busy machine.
constexpr double kLongestSeconds = 15;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

bool PortIsActive(const std::string& device) {
  for (const fabric::RdmaPort& port : fabric::ReadTopology().ports) {
    if (port.device == device) return port.active;
  }
  return false;
}

void AwaitPort(const std::string& device, bool active) {
  const auto start = steady_clock::now();
  while (PortIsActive(device) != active && SecondsSince(start) < 20) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  REQUIRE(PortIsActive(device) == active);
}

/// The link is down while this lives.
class PortDown {
 public:
  PortDown(std::string interface, const std::string& device) : interface_(std::move(interface)) {
    REQUIRE(Set("down"));
    AwaitPort(device, false);
  }
  ~PortDown() { static_cast<void>(Set("up")); }
  PortDown(const PortDown&) = delete;
  PortDown& operator=(const PortDown&) = delete;

 private:
  bool Set(const std::string& state) const {
    return ::system(("ip link set dev " + interface_ + " " + state).c_str()) == 0;
  }

  const std::string interface_;
};

// Its processes have the environment of the moment in which they start.
TestSource RdmaSource(std::uint64_t bytes, std::uint64_t seed = 1) {
  const ScopedVariable devices("UCX_NET_DEVICES", "rxe0:1");
  return TestSource({"--bytes", std::to_string(bytes), "--seed", std::to_string(seed)});
}

std::shared_ptr<RegisteredArena> EmptyTarget(std::uint64_t bytes) {
  const ScopedVariable devices("UCX_NET_DEVICES", "rxe1:1");
  return EmptyArena(Must(CreateHostContext()).ucx, bytes, 16 * kMiB);
}

// Pulls a large arena and does `harm` once some of it has arrived; how it ended, and how long after
// the harm.
struct Harmed {
  Result<PullReport> report;
  double seconds_after = 0;
};
Harmed PullWithHarm(const PullSource& source, RegisteredArena& target,
                    const std::function<void()>& harm) {
  const std::uint64_t before = PacketsReceived("rxe1");
  std::optional<steady_clock::time_point> harmed;
  auto report = Pull(source, target, kHasty, {}, [&](const PullProgress& now) {
    if (harmed || now.counters.bytes_verified == 0) return;
    CHECK(PacketsReceived("rxe1") - before >= now.counters.bytes_verified / kMtu);
    harm();
    harmed = steady_clock::now();
  });
  REQUIRE(harmed.has_value());
  return {std::move(report), SecondsSince(*harmed)};
}

void RequireBrokenConnection(const Harmed& harmed) {
  const Status status = harmed.report.status();
  INFO(status.ToString() << " after " << harmed.seconds_after << " s");
  REQUIRE((status.code() == StatusCode::kUnavailable ||
           status.code() == StatusCode::kDeadlineExceeded));
  REQUIRE_THAT(status.message(), Catch::Contains("test/source-0"));
  REQUIRE(harmed.seconds_after < kLongestSeconds);
}

// The source answers with what is alive now; a process that died is started again by it.
PullReport PullAgain(TestSource& source, RegisteredArena& target, std::uint64_t bytes,
                     std::uint64_t seed) {
  Result<PullReport> report = Unavailable("not tried");
  for (int attempt = 0; attempt < 10 && !report.ok(); ++attempt) {
    source.Reopen();
    report = Pull(SourceOf(source.answer()), target, kPatient, {}, nullptr);
    if (!report.ok()) std::this_thread::sleep_for(milliseconds(500));
  }
  INFO(report.status().ToString());
  REQUIRE(report.ok());
  REQUIRE(report->transport == kOverRc);
  REQUIRE(SameBytes(target.arena(), *RandomArena(bytes, bytes, seed)));
  return *report;
}

// No other way: a pull that cannot go over rc fails. (UCX makes the connections by UD.)
const char* const kRcOnly = "rc";

TEST_CASE("a pull over rc brings every byte, and so does the next into the same memory") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  const std::uint64_t bytes = 37 * kMiB + 1234;
  TestSource source = RdmaSource(bytes, 5);
  const auto target = EmptyTarget(bytes);
  for (int round = 0; round < 2; ++round) {
    const std::uint64_t before = PacketsReceived("rxe1");
    const auto report = Pull(SourceOf(source.answer()), *target, kPatient, {}, nullptr);
    REQUIRE(report.status() == Status());
    REQUIRE(report->transport == kOverRc);
    REQUIRE(report->counters.bytes_verified == bytes);
    REQUIRE(PacketsReceived("rxe1") - before >= bytes / kMtu);
    REQUIRE(SameBytes(target->arena(), *RandomArena(bytes, 16 * kMiB, 5)));
    WARN("over rc: " << static_cast<double>(bytes) / kMiB / report->seconds << " MiB/s");
    for (std::byte& byte : target->arena().span()) byte = std::byte{0};
  }
}

TEST_CASE("a byte that is wrong in the source is data loss over rc too") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  const ScopedVariable devices("UCX_NET_DEVICES", "rxe0:1");
  TestSource source({"--bytes", std::to_string(8 * kMiB), "--flip", std::to_string(5 * kMiB)});
  const auto target = EmptyTarget(8 * kMiB);
  const Status status = Pull(SourceOf(source.answer()), *target, kPatient, {}, nullptr).status();
  REQUIRE(status.code() == StatusCode::kDataLoss);
  REQUIRE_THAT(status.message(), Catch::Contains("chunk 1 "));
}

TEST_CASE("over rc a source that stands still is read all the same") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  TestSource source = RdmaSource(8 * kMiB, 7);
  const auto target = EmptyTarget(32 * kMiB);
  const auto harmed = PullWithHarm(Repeated(source.answer(), 32 * kMiB), *target,
                                   [&] { source.SignalGroup(SIGSTOP); });
  source.SignalGroup(SIGCONT);
  INFO(harmed.report.status().ToString());
  REQUIRE(harmed.report.ok());
  REQUIRE(harmed.report->transport == kOverRc);
  REQUIRE(harmed.report->counters.bytes_verified == 32 * kMiB);
}

TEST_CASE("a source's link that goes down is an error in time, and a pull works once it is up") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  TestSource source = RdmaSource(8 * kMiB, 9);
  const auto target = EmptyTarget(kLongBytes);
  {
    std::optional<PortDown> down;
    RequireBrokenConnection(PullWithHarm(Repeated(source.answer(), kLongBytes), *target,
                                         [&] { down.emplace("veth0", "rxe0"); }));
  }
  AwaitPort("rxe0", true);
  PullAgain(source, *EmptyTarget(8 * kMiB), 8 * kMiB, 9);
}

// In a process of its own: soft-RoCE flushes UD's receive queue when its link goes down, and
// UCX 1.13 may abort the process for that. Whether or not it does, nobody may be left waiting.
TEST_CASE("a target whose own link goes down ends in time, and the source serves on") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  TestSource source = RdmaSource(8 * kMiB, 15);
  {
    std::optional<ScopedVariable> devices(std::in_place, "UCX_NET_DEVICES", "rxe1:1");
    PeerProcess target({"pull", "--bytes", std::to_string(kLongBytes)});
    devices.reset();
    target.WriteLine(json::Dump(ToJson(source.answer())));
    REQUIRE(target.ReadLine() == "moving");
    const PortDown down("veth1", "rxe1");
    const auto start = steady_clock::now();
    std::string outcome = "aborted";
    try {
      outcome = target.ReadLine();
    } catch (const std::runtime_error&) {
      // It has ended without a word.
    }
    WARN("the target whose link went down: " << outcome);
    REQUIRE(outcome != Status().ToString());
    REQUIRE(SecondsSince(start) < 10 + kLongestSeconds);  // its deadline is the default
  }
  AwaitPort("rxe1", true);
  PullAgain(source, *EmptyTarget(8 * kMiB), 8 * kMiB, 15);
}

TEST_CASE("a source killed in mid-pull is an error in time, and its successor serves") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  const auto target = EmptyTarget(kLongBytes);
  {
    TestSource source = RdmaSource(8 * kMiB);
    RequireBrokenConnection(PullWithHarm(Repeated(source.answer(), kLongBytes), *target,
                                         [&] { source.SignalGroup(SIGKILL); }));
  }
  TestSource next = RdmaSource(8 * kMiB, 11);
  PullAgain(next, *EmptyTarget(8 * kMiB), 8 * kMiB, 11);
}

TEST_CASE("a target killed in mid-pull does not keep others from being served") {
  const ScopedVariable tls("UCX_TLS", kRcOnly);
  TestSource source = RdmaSource(8 * kMiB, 13);
  {
    const ScopedVariable devices("UCX_NET_DEVICES", "rxe1:1");
    PeerProcess target({"pull", "--bytes", std::to_string(kLongBytes)});
    target.WriteLine(json::Dump(ToJson(source.answer())));
    REQUIRE(target.ReadLine() == "moving");
    target.Signal(SIGKILL);
  }
  PullAgain(source, *EmptyTarget(8 * kMiB), 8 * kMiB, 13);
  REQUIRE(source.Alive());
}

TEST_CASE("UCX takes TCP where the peer has no RDMA, and that is called a fallback") {
  const auto tcp_only = [] {
    const ScopedVariable tls("UCX_TLS", "tcp");
    return TestSource({"--bytes", std::to_string(kMiB)});
  };
  const TestSource peer = tcp_only();
  // Shared memory is what two processes of one machine have, and two pods have not.
  const ScopedVariable tls("UCX_TLS", "rc,tcp");
  const auto target = EmptyArena(Must(CreateHostContext()).ucx, kMiB, kMiB);
  const auto report = Pull(SourceOf(peer.answer()), *target, kPatient, {}, nullptr);
  REQUIRE(report.status() == Status());
  REQUIRE_THAT(report->transport, Catch::StartsWith("tcp/"));
  const auto reason = fabric::FallbackReason(report->transport, fabric::ReadTopology(),
                                             fabric::UcxSettings::OfEnvironment());
  REQUIRE(reason);
  REQUIRE_THAT(*reason, Catch::Contains("2 active RDMA ports (rxe0:1 to rxe1:1)"));
}

}  // namespace
}  // namespace rouse::transfer
