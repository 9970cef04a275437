#include <catch2/catch.hpp>
#include <thread>

#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"

namespace rouse::transfer {
namespace {

const PublisherOptions kPublisher = {.leases = {}, .program = kTransferPeerProgram};

Result<PullReport> PullNow(const PullSource& source, RegisteredArena& arena,
                           const PullOptions& options = {}) {
  return Pull(source, arena, options, {}, nullptr);
}

TEST_CASE("a pull from another process brings every byte, over TCP and over shared memory",
          "[transfer]") {
  const auto [tls, transport] =
      GENERATE(std::pair<std::string, std::string>{"tcp", "tcp/"},
               std::pair<std::string, std::string>{"sysv", "sysv/memory"},
               std::pair<std::string, std::string>{"posix", "posix/memory"});
  const ScopedVariable variable("UCX_TLS", tls);
  const std::uint64_t bytes = 37 * kMiB + 1234;
  TestSource source(
      {"--bytes", std::to_string(bytes), "--slab-bytes", std::to_string(16 * kMiB), "--seed", "5"});
  const auto context = Must(ucx::Context::Create());
  const auto target =
      EmptyArena(context, bytes, 12 * kMiB);  // slabs of another size than the source's
  std::vector<PullProgress> progress;
  const auto report =
      Pull(SourceOf(source.answer()), *target, {.piece_bytes = 3 * kMiB, .window = 4}, {},
           [&](const PullProgress& now) { progress.push_back(now); });
  REQUIRE(report.status() == Status());
  REQUIRE(SameBytes(target->arena(), *RandomArena(bytes, 16 * kMiB, 5)));
  REQUIRE(report->counters.bytes_verified == bytes);
  REQUIRE(report->counters.bytes_arrived == bytes);
  REQUIRE(report->counters.chunks_verified == 10);
  REQUIRE(report->counters.mismatches == 0);
  REQUIRE(report->seconds > 0);
  REQUIRE_THAT(report->transport, Catch::StartsWith(transport));
  REQUIRE_FALSE(progress.empty());
  REQUIRE(progress.back().counters.bytes_verified == bytes);
}

TEST_CASE("what UCX picks by itself inside a machine is shared memory", "[transfer]") {
  TestSource source({"--bytes", std::to_string(kMiB)});
  const auto context = Must(ucx::Context::Create());
  const auto target = EmptyArena(context, kMiB, kMiB);
  const auto report = PullNow(SourceOf(source.answer()), *target);
  REQUIRE(report.status() == Status());
  REQUIRE_THAT(report->transport, Catch::Contains("memory"));
}

TEST_CASE("arenas of one byte and of odd sizes arrive", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const std::uint64_t bytes = GENERATE(1u, 4095u, 4097u, 65536u * 3 + 7);
  TestSource source({"--bytes", std::to_string(bytes), "--slab-bytes", "65536", "--chunk-bytes",
                     "8192", "--seed", "9"});
  const auto target = EmptyArena(Must(ucx::Context::Create()), bytes, 32768);
  const auto report =
      PullNow(SourceOf(source.answer()), *target, {.piece_bytes = 5000, .window = 7});
  REQUIRE(report.status() == Status());
  REQUIRE(SameBytes(target->arena(), *RandomArena(bytes, 65536, 9)));
}

TEST_CASE("several targets pull from one source at a time, several ranks each", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const auto context = Must(ucx::Context::Create());
  const auto publisher = Must(Publisher::Create(kPublisher));
  std::vector<std::shared_ptr<memory::Arena>> sent;
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    sent.push_back(RandomArena((3 + rank) * kMiB, 2 * kMiB, 100 + rank));
    Must(publisher->Publish(sent.back(), ManifestOf(*sent.back(), rank, 256 * 1024)));
  }
  std::vector<Status> outcomes(4);
  {
    std::vector<std::jthread> targets;
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      targets.emplace_back([&, i] {
        const auto answer = publisher->Open("test/target-" + std::to_string(i));
        const auto target = EmptyArena(context, sent[i % 2]->bytes(), kMiB);
        outcomes[i] = PullNow(SourceOf(*answer, i % 2), *target).status();
        if (outcomes[i].ok() && !SameBytes(target->arena(), *sent[i % 2])) {
          outcomes[i] = DataLoss("other bytes");
        }
        Must(publisher->Close(answer->lease));
      });
    }
  }
  for (const Status& outcome : outcomes) REQUIRE(outcome == Status());
  REQUIRE(publisher->lease_count() == 0);
}

TEST_CASE("an arena that was pulled can be published in turn", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  TestSource source({"--bytes", std::to_string(3 * kMiB), "--seed", "11"});
  const auto context = Must(ucx::Context::Create());
  const auto middle = EmptyArena(context, 3 * kMiB, kMiB);
  Must(PullNow(SourceOf(source.answer()), *middle));
  const auto publisher = Must(Publisher::Create(kPublisher));
  Must(publisher->Publish(middle->shared_arena(), source.answer().ranks[0].manifest));
  const auto last = EmptyArena(context, 3 * kMiB, kMiB);
  Must(PullNow(SourceOf(Must(publisher->Open("test/last"))), *last));
  REQUIRE(SameBytes(last->arena(), *RandomArena(3 * kMiB, kMiB, 11)));
}

TEST_CASE("publishing seals the arena and refuses what does not fit", "[transfer]") {
  const auto publisher = Must(Publisher::Create(kPublisher));
  REQUIRE(publisher->Open("test/early").status().code() == StatusCode::kUnavailable);

  const auto arena = RandomArena(kMiB, kMiB, 1);
  WeightManifest manifest = ManifestOf(*arena, 0, kChunkBytes);
  WeightManifest bare = manifest;
  bare.chunk_digests.clear();
  REQUIRE(publisher->Publish(arena, bare).code() == StatusCode::kInvalidArgument);
  REQUIRE_FALSE(arena->sealed());
  REQUIRE(publisher->Publish(arena, manifest).ok());
  REQUIRE(arena->sealed());
  REQUIRE(publisher->Publish(arena, manifest).code() == StatusCode::kAlreadyExists);
  REQUIRE(publisher->rank_count() == 1);
}

TEST_CASE("a withdrawn arena can be read while a lease lives, and no longer", "[transfer]") {
  const auto context = Must(ucx::Context::Create());
  const auto publisher = Must(
      Publisher::Create({.leases = {.duration = std::chrono::milliseconds(3000), .max_leases = 2},
                         .program = kTransferPeerProgram}));
  auto arena = RandomArena(kMiB, kMiB, 1);
  Must(publisher->Publish(arena, ManifestOf(*arena, 0, kChunkBytes)));
  arena.reset();
  const auto closed = Must(publisher->Open("test/a"));
  const auto forgotten = Must(publisher->Open("test/b"));
  const auto forgotten_at = std::chrono::steady_clock::now();
  REQUIRE(publisher->Open("test/c").status().code() == StatusCode::kResourceExhausted);
  publisher->Withdraw();
  REQUIRE(publisher->Open("test/d").status().code() == StatusCode::kUnavailable);
  Must(publisher->Close(closed.lease));

  const auto target = EmptyArena(context, kMiB, kMiB);
  REQUIRE(PullNow(SourceOf(forgotten), *target).status() == Status());
  std::this_thread::sleep_until(forgotten_at + std::chrono::milliseconds(3100));
  publisher->Expire();
  REQUIRE(publisher->Renew(forgotten.lease).code() == StatusCode::kNotFound);
  REQUIRE_FALSE(
      PullNow(SourceOf(forgotten), *target, {.progress_deadline = std::chrono::milliseconds(1000)})
          .ok());
}

}  // namespace
}  // namespace rouse::transfer
