// What goes wrong between two agents, each caused for real.

#include <signal.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <tuple>

#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"
#include "common/tests/unwatched.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

TEST_CASE("a byte that changed in the source is data loss that names chunk and source",
          "[transfer]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  TestSource source(
      {"--bytes", std::to_string(20 * kMiB), "--flip", std::to_string(13 * kMiB + 5)});
  const auto target = EmptyArena(Must(ucx::Context::Create()), 20 * kMiB, 20 * kMiB);
  const auto report = Pull(SourceOf(source.answer()), *target, {}, {}, nullptr);
  REQUIRE(report.status().code() == StatusCode::kDataLoss);
  REQUIRE_THAT(report.status().message(), Catch::Contains("chunk 3 ") &&
                                              Catch::Contains("3 times") &&
                                              Catch::Contains("test/source-0"));
}

TEST_CASE("a chunk that arrives right after arriving wrong is pulled again and used",
          "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const auto context = Must(ucx::Context::Create());
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  const auto arena = RandomArena(6 * kMiB, 2 * kMiB, 3);
  Must(publisher->Publish(arena, ManifestOf(*arena, 0, kMiB)));
  const auto original = RandomArena(6 * kMiB, 2 * kMiB, 3);
  arena->span()[2 * kMiB + 17] ^= std::byte{1};
  const auto target = EmptyArena(context, 6 * kMiB, kMiB);
  const auto report = Pull(SourceOf(Must(publisher->Open("test/target"))), *target,
                           {.max_mismatches = 1'000'000}, {}, [&](const PullProgress& now) {
                             if (now.counters.mismatches > 0)
                               arena->span()[2 * kMiB + 17] = original->span()[2 * kMiB + 17];
                           });
  REQUIRE(report.status() == Status());
  REQUIRE(report->counters.mismatches > 0);
  REQUIRE(report->counters.bytes_arrived == 6 * kMiB + report->counters.mismatches * kMiB);
  REQUIRE(SameBytes(target->arena(), *original));
}

// Pulls a large arena and does `harm` once some of it has arrived.
Result<PullReport> PullWithHarm(const PullSource& source, RegisteredArena& target,
                                const PullOptions& options, std::stop_token stop,
                                const std::function<void()>& harm) {
  bool done = false;
  return Pull(source, target, options, stop, [&](const PullProgress& now) {
    if (done || now.counters.bytes_verified == 0) return;
    done = true;
    harm();
  });
}

// Large enough that the first progress report comes long before the end.
constexpr std::uint64_t kLargeBytes = 512 * kMiB;

TEST_CASE("a source that is killed in mid-pull is an error within the deadline", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  TestSource source({"--bytes", std::to_string(64 * kMiB)});
  const auto target = EmptyArena(Must(ucx::Context::Create()), kLargeBytes, 256 * kMiB);
  const PullOptions options = {
      .piece_bytes = 64 * 1024, .window = 2, .progress_deadline = milliseconds(3000)};
  steady_clock::time_point killed;
  const auto report =
      PullWithHarm(Repeated(source.answer(), kLargeBytes), *target, options, {}, [&] {
        source.Signal(SIGKILL);
        killed = steady_clock::now();
      });
  REQUIRE_FALSE(report.ok());
  REQUIRE(killed != steady_clock::time_point{});
  REQUIRE(SecondsSince(killed) < 8);
  REQUIRE((report.status().code() == StatusCode::kUnavailable ||
           report.status().code() == StatusCode::kDeadlineExceeded));
  REQUIRE_THAT(report.status().message(), Catch::Contains("test/source-0"));
}

TEST_CASE("a source that is stuck is a missed deadline, and nothing is written afterwards",
          "[transfer]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  TestSource source({"--bytes", std::to_string(64 * kMiB)});
  const auto target = EmptyArena(Must(ucx::Context::Create()), kLargeBytes, 256 * kMiB);
  const PullOptions options = {
      .piece_bytes = 1 * kMiB, .window = 4, .progress_deadline = milliseconds(1000)};
  steady_clock::time_point stopped;
  const auto report =
      PullWithHarm(Repeated(source.answer(), kLargeBytes), *target, options, {}, [&] {
        source.SignalGroup(SIGSTOP);
        stopped = steady_clock::now();
      });
  REQUIRE(report.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE(SecondsSince(stopped) < 6);
  REQUIRE_THAT(report.status().message(),
               Catch::Contains("test/source-0") && Catch::Contains("nothing arrived"));
  const auto span = target->arena().span();
  LookAt(span);
  const Unwatched unwatched;
  const std::vector<std::byte> pattern(kMiB, std::byte{0x77});
  for (std::size_t at = 0; at < span.size(); at += kMiB)
    std::memcpy(&span[at], pattern.data(), kMiB);
  source.SignalGroup(SIGCONT);
  std::this_thread::sleep_for(milliseconds(500));
  for (std::size_t at = 0; at < span.size(); at += kMiB) {
    REQUIRE(std::memcmp(&span[at], pattern.data(), kMiB) == 0);
  }
}

TEST_CASE("a source that was gone before the pull is an error within the deadline", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  PullSource gone;
  {
    TestSource source({"--bytes", std::to_string(kMiB)});
    gone = SourceOf(source.answer());
  }
  const auto target = EmptyArena(Must(ucx::Context::Create()), kMiB, kMiB);
  const auto start = steady_clock::now();
  const auto report = Pull(gone, *target, {.progress_deadline = milliseconds(2000)}, {}, nullptr);
  REQUIRE_FALSE(report.ok());
  REQUIRE(SecondsSince(start) < 6);
  REQUIRE_THAT(report.status().message(), Catch::Contains("test/source-0"));
}

TEST_CASE("a damaged description ends in an error, not in a crash or a wrong byte", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  TestSource source({"--bytes", std::to_string(kMiB)});
  const auto context = Must(ucx::Context::Create());
  const auto target = EmptyArena(context, kMiB, kMiB);
  const PullOptions options = {.progress_deadline = milliseconds(500)};
  const PullSource good = SourceOf(source.answer());
  const std::string& address = good.worker_address;

  SECTION("worker address cut short") {
    for (std::size_t bytes = 0; bytes < address.size(); bytes += 7) {
      PullSource bad = good;
      bad.worker_address.resize(bytes);
      const auto report = Pull(bad, *target, options, {}, nullptr);
      // What is missing at the very end may be padding.
      if (bytes < address.size() / 2) REQUIRE_FALSE(report.ok());
      if (report.ok()) REQUIRE(report->counters.bytes_verified == kMiB);
    }
  }
  SECTION("worker address of an unknown version") {
    for (int version = 2; version < 16; ++version) {
      PullSource bad = good;
      bad.worker_address[0] = static_cast<char>((bad.worker_address[0] & 0xf0) | version);
      const Status status = Pull(bad, *target, options, {}, nullptr).status();
      REQUIRE(status.code() == StatusCode::kInvalidArgument);
      REQUIRE_THAT(status.message(), Catch::Contains("version " + std::to_string(version)));
    }
  }
  SECTION("worker address that is nothing but one byte, repeated") {
    for (const char byte : {'\x00', '\x01', '\x11', '\x71'}) {
      PullSource bad = good;
      bad.worker_address.assign(address.size(), byte);
      REQUIRE_FALSE(Pull(bad, *target, options, {}, nullptr).ok());
    }
  }
  SECTION("remote key cut short, or of nothing but one byte") {
    PullSource bad = good;
    bad.rank.slabs[0].rkey.resize(4);
    REQUIRE(Pull(bad, *target, options, {}, nullptr).status().code() ==
            StatusCode::kInvalidArgument);
    bad.rank.slabs[0].rkey.assign(200, GENERATE('\x00', '\x01', '\x7f'));
    // Over TCP a key carries nothing, so some of these are as good as the real one.
    const auto report = Pull(bad, *target, options, {}, nullptr);
    if (report.ok()) REQUIRE(report->counters.bytes_verified == kMiB);
  }
  REQUIRE(Pull(SourceOf(source.answer()), *target, options, {}, nullptr).status() == Status());
}

TEST_CASE("a pull can be cancelled", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  TestSource source({"--bytes", std::to_string(64 * kMiB)});
  const auto target = EmptyArena(Must(ucx::Context::Create()), kLargeBytes, 256 * kMiB);
  std::stop_source stop;
  steady_clock::time_point asked;
  const auto report = PullWithHarm(Repeated(source.answer(), kLargeBytes), *target,
                                   {.piece_bytes = 64 * 1024, .window = 2}, stop.get_token(), [&] {
                                     stop.request_stop();
                                     asked = steady_clock::now();
                                   });
  REQUIRE(report.status().code() == StatusCode::kCancelled);
  REQUIRE(SecondsSince(asked) < 2);
}

// Pulls from whatever the source answers now, asking again while the answer is of a process that
// died.
Status PullReopening(TestSource& source, RegisteredArena& target) {
  Status status;
  for (int attempt = 0; attempt < 20; ++attempt) {
    source.Reopen();
    status = Pull(SourceOf(source.answer()), target, {.progress_deadline = milliseconds(3000)}, {},
                  nullptr)
                 .status();
    if (status.ok()) return status;
    std::this_thread::sleep_for(milliseconds(200));
  }
  return status;
}

TEST_CASE("a source whose targets are killed in mid-pull serves others", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  TestSource source({"--bytes", std::to_string(64 * kMiB), "--seed", "21"});
  // The second and third way abort UCX in the source over TCP: answers are queued when the target
  // dies.
  const auto [stop_first, piece_bytes, window] =
      GENERATE(std::tuple<bool, std::uint64_t, int>{false, 64 << 10, 2},
               std::tuple<bool, std::uint64_t, int>{true, 64 << 10, 2},
               std::tuple<bool, std::uint64_t, int>{true, 4 << 20, 4});
  {
    PeerProcess target({"pull", "--bytes", std::to_string(kLargeBytes), "--piece-bytes",
                        std::to_string(piece_bytes), "--window",
                        std::to_string(static_cast<std::uint64_t>(window))});
    target.WriteLine(json::Dump(ToJson(source.answer())));
    REQUIRE(target.ReadLine() == "moving");
    if (stop_first) {
      source.SignalGroup(SIGSTOP);
      std::this_thread::sleep_for(milliseconds(50));
    }
    target.Signal(SIGKILL);
    std::this_thread::sleep_for(milliseconds(50));
    source.SignalGroup(SIGCONT);
  }
  const auto second = EmptyArena(Must(ucx::Context::Create()), 64 * kMiB, 64 * kMiB);
  REQUIRE(PullReopening(source, *second) == Status());
  REQUIRE(source.Alive());
  REQUIRE(SameBytes(second->arena(), *RandomArena(64 * kMiB, 64 * kMiB, 21)));
}

}  // namespace
}  // namespace rouse::transfer
