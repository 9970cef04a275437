// Pulls from several sources at once, and from some that are still pulling themselves.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "agent/memory/chunk_digest.h"
#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kChunk = 256u << 10;

OpenedPeer PeerOf(const OpenResponse& answer, const std::string& name) {
  return {.name = name, .worker_address = answer.worker_address, .ranks = answer.ranks};
}

/// A target's side, and what its pull told.
struct Target {
  explicit Target(const WeightManifest& described)
      : manifest(described),
        arena(EmptyArena(Must(ucx::Context::Create()), described.arena_bytes, 3 * kMiB)),
        available(Must(Availability::Create(described.chunk_digests.size()))) {}

  /// `on_moving` is called once, when something has been verified.
  Result<PullReport> Pull(PullOptions options = {}, std::function<void()> on_moving = nullptr) {
    options.seed = 7;
    return PullFromMany(manifest, sources, *arena, *available, options, stop.get_token(),
                        {.on_progress =
                             [&](const PullProgress& now) {
                               verified = now.counters.bytes_verified;
                               if (now.counters.bytes_verified > 0 && on_moving) {
                                 std::exchange(on_moving, nullptr)();
                               }
                             },
                         .on_put_aside =
                             [&](PullSources::Id id, const Status& why) {
                               aside[id] = why;
                               if (when_aside) when_aside();
                             },
                         .on_end = [&](const auto& all) { shares = all; }});
  }
  /// Any thread.
  std::uint64_t Chunks() const {
    std::uint64_t chunks = 0;
    for (const std::uint64_t word : available->Words()) chunks += std::popcount(word);
    return chunks;
  }
  std::uint64_t From(const std::string& name) const {
    for (const SourceShare& share : shares) {
      if (share.name == name) return share.bytes_verified;
    }
    return 0;
  }

  WeightManifest manifest;
  PullSources sources;
  std::shared_ptr<RegisteredArena> arena;
  std::shared_ptr<Availability> available;
  std::stop_source stop;
  std::function<void()> when_aside;
  std::atomic<std::uint64_t> verified{0};
  std::map<PullSources::Id, Status> aside;
  std::vector<SourceShare> shares;
};

TestSource SourceWith(std::uint64_t bytes, const std::string& seed,
                      std::vector<std::string> more = {}) {
  more.insert(more.end(),
              {"--bytes", std::to_string(bytes), "--slab-bytes", std::to_string(8 * kMiB),
               "--chunk-bytes", std::to_string(kChunk), "--seed", seed});
  return TestSource(std::move(more));
}

TEST_CASE("a pull takes different chunks from several sources at once", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  constexpr std::uint64_t kBytes = 24 * kMiB + 777;
  TestSource first = SourceWith(kBytes, "5");
  TestSource second = SourceWith(kBytes, "5");
  Target target(first.answer().ranks[0].manifest);
  target.sources.Add(PeerOf(first.answer(), "first"));
  target.sources.Add(PeerOf(second.answer(), "second"));
  const auto report = target.Pull({.piece_bytes = 64 << 10});
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(SameBytes(target.arena->arena(), *RandomArena(kBytes, 8 * kMiB, 5)));
  REQUIRE(report->counters.bytes_arrived == kBytes);
  REQUIRE(target.From("first") > 0);
  REQUIRE(target.From("second") > 0);
  REQUIRE(target.From("first") + target.From("second") == kBytes);
  REQUIRE(target.aside.empty());
}

TEST_CASE("a source that joins in mid-pull helps, and one that leaves is not missed", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  constexpr std::uint64_t kBytes = 64 * kMiB;
  TestSource first = SourceWith(kBytes, "6");
  TestSource second = SourceWith(kBytes, "6");
  Target target(first.answer().ranks[0].manifest);
  const auto id = target.sources.Add(PeerOf(first.answer(), "first"));
  // Nothing moves on between the two: the first is stopped when it is left.
  const auto report = target.Pull({.piece_bytes = 64 << 10, .window = 1}, [&] {
    first.SignalGroup(SIGSTOP);
    target.sources.Add(PeerOf(second.answer(), "second"));
    target.sources.Remove(id);
  });
  first.SignalGroup(SIGCONT);
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(SameBytes(target.arena->arena(), *RandomArena(kBytes, 8 * kMiB, 6)));
  REQUIRE(target.From("first") > 0);
  REQUIRE(target.From("second") > 0);
  REQUIRE(target.aside.contains(id));
}

TEST_CASE("a source that dies costs the chunks in flight and no more", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  constexpr std::uint64_t kBytes = 64 * kMiB;
  TestSource dying = SourceWith(kBytes, "8");
  TestSource living = SourceWith(kBytes, "8");
  Target target(living.answer().ranks[0].manifest);
  // Both from the start, and killed when both have sent something: now and then UCX 1.13 never
  // gets through, over sysv, to a source that joins just when another one is killed.
  const auto id = target.sources.Add(PeerOf(dying.answer(), "dying"));
  target.sources.Add(PeerOf(living.answer(), "living"));
  constexpr std::uint32_t kWindow = 2;
  // Progress is told ten times a second, by when all may be there.
  const std::jthread killer([&](const std::stop_token& stop) {
    while (target.Chunks() < kBytes / kChunk / 4 && !stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    dying.SignalGroup(SIGKILL);
  });
  const auto report = target.Pull(
      {.piece_bytes = 64 << 10, .window = kWindow, .progress_deadline = milliseconds(2'000)});
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(SameBytes(target.arena->arena(), *RandomArena(kBytes, 8 * kMiB, 8)));
  REQUIRE(target.aside.contains(id));
  REQUIRE(report->counters.mismatches == 0);
  REQUIRE(report->counters.bytes_arrived <= kBytes + kWindow * kChunk);
  REQUIRE(target.From("living") > 0);
}

TEST_CASE("damaged chunks are pulled again from another source, and theirs is put aside",
          "[swarm]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  constexpr std::uint64_t kBytes = 8 * kMiB;
  TestSource good = SourceWith(kBytes, "9");
  TestSource bad = SourceWith(kBytes, "9", {"--flip", std::to_string(3 * kMiB + 5)});
  Target target(good.answer().ranks[0].manifest);
  // The good one comes once the bad one has shown itself.
  const auto bad_id = target.sources.Add(PeerOf(bad.answer(), "bad"));
  target.when_aside = [&] { target.sources.Add(PeerOf(good.answer(), "good")); };
  const auto report = target.Pull();
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(SameBytes(target.arena->arena(), *RandomArena(kBytes, 8 * kMiB, 9)));
  REQUIRE(report->counters.mismatches == 3);
  REQUIRE(target.aside.size() == 1);
  REQUIRE(target.aside.at(bad_id).code() == StatusCode::kDataLoss);
  REQUIRE(target.From("bad") > 0);
  REQUIRE(target.From("good") >= kChunk);
  REQUIRE(target.From("bad") + target.From("good") == kBytes);
}

TEST_CASE("a source of other bytes is not read from", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  TestSource right = SourceWith(4 * kMiB, "1");
  TestSource other = SourceWith(4 * kMiB, "2");
  Target target(right.answer().ranks[0].manifest);
  const auto id = target.sources.Add(PeerOf(other.answer(), "other"));
  target.sources.Add(PeerOf(right.answer(), "right"));
  REQUIRE(target.Pull().status() == Status());
  REQUIRE(target.aside.at(id).code() == StatusCode::kFailedPrecondition);
  REQUIRE(target.From("right") == 4 * kMiB);
}

TEST_CASE("what an earlier pull has verified is not pulled again", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  constexpr std::uint64_t kBytes = 64 * kMiB;
  TestSource source = SourceWith(kBytes, "3");
  Target target(source.answer().ranks[0].manifest);
  const auto id = target.sources.Add(PeerOf(source.answer(), "source"));
  const auto begun =
      target.Pull({.piece_bytes = 64 << 10, .window = 1}, [&] { target.stop.request_stop(); });
  REQUIRE(begun.status().code() == StatusCode::kCancelled);
  const std::uint64_t before = target.verified;
  REQUIRE(before > 0);
  REQUIRE(before < kBytes);
  target.stop = {};
  // From another one: UCX may have aborted the first one's source process, which had answers queued
  // (source_process.h).
  TestSource next = SourceWith(kBytes, "3");
  target.sources.Remove(id);
  target.sources.Add(PeerOf(next.answer(), "next"));
  const auto report = target.Pull();
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(report->counters.bytes_arrived <= kBytes - before);
  REQUIRE(report->counters.bytes_verified == kBytes);
  REQUIRE(SameBytes(target.arena->arena(), *RandomArena(kBytes, 8 * kMiB, 3)));
}

TEST_CASE("a source that is still pulling serves what it has, and nothing else", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", GENERATE("tcp", "sysv"));
  constexpr std::uint64_t kBytes = 6 * kMiB + 100;
  const auto whole = RandomArena(kBytes, 2 * kMiB, 4);
  const WeightManifest manifest = ManifestOf(*whole, 0, kChunk);
  const std::uint64_t chunks = manifest.chunk_digests.size();
  // The relay: nothing has arrived yet.
  std::shared_ptr<memory::Arena> arena =
      Must(memory::Arena::Create({.bytes = kBytes, .slab_bytes = 2 * kMiB, .name = "test-relay"}));
  const auto available = Must(Availability::Create(chunks));
  const auto arrive = [&](std::uint64_t chunk) {
    const auto range = memory::ChunkRangeOf(chunk, kBytes, kChunk);
    std::memcpy(&arena->span()[range.offset], &whole->span()[range.offset], range.bytes);
    available->Set(chunk);
  };
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  Must(publisher->Publish(arena, manifest, available));
  REQUIRE(publisher->Open("test/old").status().code() == StatusCode::kUnavailable);
  const OpenResponse partial = Must(publisher->Open("test/target", true));
  REQUIRE(partial.ranks[0].availability.has_value());

  Target target(manifest);
  target.sources.Add(PeerOf(partial, "relay"));
  Result<PullReport> report = Unavailable("not yet");
  std::jthread pulls([&] { report = target.Pull({.starved_deadline = milliseconds(60'000)}); });
  const auto reaches = [&](std::uint64_t bytes) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (target.verified < bytes && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    return target.verified.load();
  };
  // The target gets each half when the relay has it, not before the relay has all.
  for (std::uint64_t chunk = chunks / 2; chunk < chunks; ++chunk) arrive(chunk);
  const std::uint64_t half = kBytes - chunks / 2 * kChunk;
  REQUIRE(reaches(half) == half);
  std::this_thread::sleep_for(milliseconds(300));
  REQUIRE(target.verified == half);
  // Who opens it when it is complete is told so, while the first goes on with its bitmap.
  for (std::uint64_t chunk = 0; chunk < chunks / 2; ++chunk) arrive(chunk);
  publisher->Complete();
  REQUIRE_FALSE(Must(publisher->Open("test/old")).ranks[0].availability.has_value());
  pulls.join();
  REQUIRE(report.status().ToString() == Status().ToString());
  REQUIRE(report->counters.mismatches == 0);
  REQUIRE(report->counters.bytes_arrived == kBytes);
  REQUIRE(SameBytes(target.arena->arena(), *whole));
}

TEST_CASE("two targets that know only each other give up, and say what is missing", "[swarm]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const auto whole = RandomArena(kMiB, kMiB, 4);
  const WeightManifest manifest = ManifestOf(*whole, 0, kChunk);
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  Must(publisher->Publish(whole, manifest, Must(Availability::Create(4))));
  Target target(manifest);
  target.sources.Add(PeerOf(Must(publisher->Open("test/target", true)), "empty"));
  const auto report = target.Pull({.starved_deadline = milliseconds(500)});
  REQUIRE(report.status().code() == StatusCode::kUnavailable);
  REQUIRE_THAT(report.status().message(), Catch::Contains("4 of 4 chunks are missing"));
}

TEST_CASE("a source process that answers too late is dropped with what it might still say",
          "[transfer]") {
  auto process = Must(SourceProcess::Start(kTransferPeerProgram, std::chrono::seconds(1)));
  Must(process->Serve());
  const auto arena = RandomArena(kMiB, kMiB / 2, 1);
  Must(process->Offer(arena->slab(0)));
  const auto child_of = [](pid_t parent) {
    const std::string pid = std::to_string(parent);
    std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
    pid_t child = 0;
    children >> child;
    REQUIRE(child > 0);
    return child;
  };
  const pid_t child = child_of(child_of(::getpid()));  // the keeper's
  ::kill(child, SIGSTOP);
  REQUIRE(process->Offer(arena->slab(1)).status().code() == StatusCode::kDeadlineExceeded);
  ::kill(child, SIGCONT);
  std::string why;
  REQUIRE_FALSE(process->Alive(&why));
  REQUIRE_THAT(why, Catch::Contains("does not answer"));
  REQUIRE(process->Offer(arena->slab(0)).status().code() == StatusCode::kUnavailable);
  Must(process->Serve());
  Must(process->Offer(arena->slab(0)));
}

}  // namespace
}  // namespace rouse::transfer
