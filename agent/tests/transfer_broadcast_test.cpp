// Broadcasts within a node up to NCCL itself: a fake stands in for it, and host memory for a GPU's.

#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>
#include <thread>

#include "agent/memory/chunk_digest.h"
#include "agent/socket/seqpacket.h"
#include "agent/tests/fake_broadcaster.h"
#include "agent/tests/fake_gpu.h"
#include "agent/tests/paths.h"
#include "agent/tests/temp_folder.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/broadcast_pull.h"
#include "agent/transfer/broadcast_source.h"
#include "agent/transfer/node_share.h"
#include "agent/transfer/publisher.h"

namespace rouse::transfer {
namespace {

using memory::BroadcastSeat;
using std::chrono::milliseconds;
using std::chrono::seconds;

using testing::FakeBroadcaster;
using testing::Hub;
using Mode = FakeBroadcaster::Mode;

// A source that offers its arena by descriptor and by broadcast, to leases "lease-...".
class Offering {
 public:
  explicit Offering(Mode mode = Mode::kWorks, bool with_broadcasts = true)
      : arena(RandomArena(37 * kMiB + 1234, 8 * kMiB, 3)) {
    Must(arena->Seal());
    rank.manifest = ManifestOf(*arena, 0, kChunkBytes);
    for (const std::uint64_t bytes : arena->SlabBytes()) rank.slabs.push_back({.bytes = bytes});
    char name[] = "/tmp/rouse-broadcast-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp failed");
    folder_ = name;
    RosterOptions roster{
        .window = milliseconds(1500), .ask_again = milliseconds(10), .silence = milliseconds(1200)};
    roster.rates.setup_seconds = 0;  // 37 MiB shall do
    broadcasts_ = std::make_unique<BroadcastSource>(
        arena, 0, std::make_unique<FakeBroadcaster>(hub, mode),
        BroadcastSourceOptions{.self = {"node", "GPU-0"}, .roster = roster});
    share_ = Must(NodeShare::Start(
        folder_, "a.sock",
        [this](const NodeRequest& request) -> Result<SharedSlabs> {
          SharedSlabs slabs{.memory = "host", .fds = {}};
          for (std::size_t i = request.first; i < request.first + request.count; ++i) {
            slabs.fds.push_back(Must(arena->slab(i).DuplicateFd()));
          }
          return slabs;
        },
        {},
        with_broadcasts ? NodeShare::Join([this](const NodeJoin& join) -> Result<NodeJoinAnswer> {
          if (!join.lease.starts_with("lease-")) return NotFound("no such lease");
          return broadcasts_->Join(join);
        })
                        : nullptr));
  }
  ~Offering() {
    share_.reset();
    std::filesystem::remove_all(folder_);
  }

  NodeSource Node(int target) const {
    return {"test/source", folder_ + "/a.sock", "lease-" + std::to_string(target)};
  }

  Hub hub;
  const std::shared_ptr<memory::Arena> arena;
  RemoteRank rank;

 private:
  std::string folder_;
  std::unique_ptr<BroadcastSource> broadcasts_;
  std::unique_ptr<NodeShare> share_;
};

struct Outcome {
  std::shared_ptr<memory::Arena> arena;
  Result<PullReport> report = Internal("not run");
};

// `modes.size()` targets that start together, each on a thread.
std::vector<Outcome> Fetch(Offering& source, const std::vector<Mode>& modes) {
  std::vector<Outcome> outcomes(modes.size());
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < modes.size(); ++i) {
    threads.emplace_back([&, i] {
      Outcome& outcome = outcomes[i];
      outcome.arena =
          Must(memory::Arena::Create({.bytes = source.arena->bytes(), .slab_bytes = 4 * kMiB}));
      const auto engine = memory::HostCopyEngine(1);
      FakeBroadcaster broadcaster(source.hub, modes[i]);
      outcome.report = FetchFromNode(source.Node(static_cast<int>(i)), source.rank, *outcome.arena,
                                     memory::HostMemory(), *engine,
                                     modes[i] == Mode::kAbsent ? nullptr : &broadcaster,
                                     {.self = {"node", "GPU-" + std::to_string(i + 1)},
                                      .broadcast = {.setup_deadline = milliseconds(3000)}},
                                     {}, nullptr);
    });
  }
  threads.clear();
  return outcomes;
}

std::string Transport(const Outcome& outcome, const Offering& source) {
  REQUIRE(outcome.report.status() == Status());
  REQUIRE(SameBytes(*outcome.arena, *source.arena));
  REQUIRE(outcome.report->counters.bytes_verified == source.arena->bytes());
  REQUIRE(outcome.report->counters.chunks_verified == 10);
  return outcome.report->transport;
}

TEST_CASE("targets that start together get one broadcast, verified", "[broadcast]") {
  Offering source;
  const auto outcomes = Fetch(source, {Mode::kWorks, Mode::kWorks, Mode::kWorks});
  for (const Outcome& outcome : outcomes) REQUIRE(Transport(outcome, source) == "broadcast/host");
  REQUIRE(source.hub.seats.size() == 3);
  std::set<int> ranks;
  for (const BroadcastSeat& seat : source.hub.seats) {
    REQUIRE(seat.id[7] == std::byte{42});
    REQUIRE(seat.ranks == 4);
    ranks.insert(seat.rank);
  }
  REQUIRE(ranks == std::set<int>{1, 2, 3});
}

TEST_CASE("a target whose broadcast fails pulls, and so do those who waited for it",
          "[broadcast]") {
  Offering source;
  const auto outcomes = Fetch(source, {Mode::kFails, Mode::kWorks});
  REQUIRE(Transport(outcomes[0], source) == "node/host");
  Transport(outcomes[1], source);

  Offering broken(Mode::kNoId);
  for (const Outcome& outcome : Fetch(broken, {Mode::kWorks, Mode::kWorks})) {
    REQUIRE(Transport(outcome, broken) == "node/host");
  }
  REQUIRE(broken.hub.seats.empty());
}

TEST_CASE("bytes that a broadcast damaged are found, and pulled", "[broadcast]") {
  Offering source;
  const auto outcomes = Fetch(source, {Mode::kFlipsAByte, Mode::kWorks});
  REQUIRE(Transport(outcomes[0], source) == "node/host");
  REQUIRE(Transport(outcomes[1], source) == "broadcast/host");
}

TEST_CASE("bytes that the source itself has wrong are an error by any way", "[broadcast]") {
  Offering source;
  source.arena->span()[5 * kChunkBytes + 7] ^= std::byte{1};
  for (const Outcome& outcome : Fetch(source, {Mode::kWorks, Mode::kWorks})) {
    REQUIRE(outcome.report.status().code() == StatusCode::kDataLoss);
    REQUIRE_THAT(outcome.report.status().message(), Catch::Contains("chunk 5 of rank 0"));
  }
}

TEST_CASE("a target alone, or of a source without broadcasts, pulls", "[broadcast]") {
  Offering source;
  REQUIRE(Transport(Fetch(source, {Mode::kWorks})[0], source) == "node/host");
  Offering without(Mode::kWorks, false);
  for (const Outcome& outcome : Fetch(without, {Mode::kWorks, Mode::kWorks})) {
    REQUIRE(Transport(outcome, without) == "node/host");
  }
  REQUIRE(without.hub.seats.empty());
  Offering other;
  REQUIRE(Transport(Fetch(other, {Mode::kAbsent})[0], other) == "node/host");
}

TEST_CASE("waiting for a seat ends when it is stopped, or at its deadline", "[broadcast]") {
  Offering source;
  std::stop_source stop;
  stop.request_stop();
  REQUIRE(AwaitSeat(source.Node(1), 0, {"node", "GPU-1"}, seconds(60), stop.get_token())
              .status()
              .code() == StatusCode::kCancelled);
  REQUIRE(AwaitSeat(source.Node(1), 0, {"node", "GPU-1"}, milliseconds(100), {}).status().code() ==
          StatusCode::kDeadlineExceeded);
  const auto other = AwaitSeat(source.Node(1), 3, {"node", "GPU-1"}, seconds(60), {});
  REQUIRE(other.status().code() == StatusCode::kNotFound);
  NodeSource guessing = source.Node(1);
  guessing.lease = "guessed";
  REQUIRE(AwaitSeat(guessing, 0, {"node", "GPU-1"}, seconds(60), {}).status().code() ==
          StatusCode::kNotFound);
}

TEST_CASE("a broadcast ends with the leases of what was withdrawn", "[broadcast]") {
  Hub hub;
  const agent::TempFolder folder;
  const auto broadcasting = std::make_shared<testing::FakeBroadcasting>(hub);
  RosterOptions roster{.window = milliseconds(1), .silence = seconds(60)};
  roster.rates.setup_seconds = 0;
  const auto publisher = Must(Publisher::Create({.leases = {},
                                                 .program = kTransferPeerProgram,
                                                 .node_folder = folder.path(),
                                                 .node_socket = "a.sock",
                                                 .broadcasting = broadcasting,
                                                 .roster = roster}));
  std::shared_ptr<memory::Arena> arena =
      RandomArena(9 * kMiB, 8 * kMiB, 3, std::make_shared<testing::FakeGpuMemory>("GPU-0"));
  const std::weak_ptr<memory::Arena> memory = arena;
  Must(publisher->Publish(arena, ManifestOf(*arena, 0, kChunkBytes)));
  arena.reset();
  std::vector<std::string> leases;
  const auto join = [&](int target) {
    leases.push_back(Must(publisher->Open("test/target")).lease);
    return std::jthread([&, target, lease = leases.back()] {
      static_cast<void>(AwaitSeat({"test/source", folder.path() + "/a.sock", lease}, 0,
                                  {"node", "GPU-" + std::to_string(target)}, seconds(60), {}));
    });
  };
  {
    const std::jthread first = join(1);
    const std::jthread second = join(2);
  }
  while (!hub.sending) std::this_thread::sleep_for(milliseconds(1));

  publisher->Withdraw();
  REQUIRE(hub.sending);  // Who has a lease may have it to the end.
  Must(publisher->Close(leases[0]));
  REQUIRE(hub.sending);
  if (GENERATE(true, false)) {
    Must(publisher->Close(leases[1]));
  } else {
    REQUIRE(publisher->Revoke() == 1);
  }
  REQUIRE_FALSE(hub.sending);
  REQUIRE(memory.expired());
}

TEST_CASE("joins and seats survive the wire, and nonsense is named", "[broadcast]") {
  const auto join =
      Must(DecodeNodeMessage(json::Dump(ToJson(NodeJoin{"lease", 3, {"a/b/1", "GPU-7"}}))));
  REQUIRE(std::get<NodeJoin>(join).member == BroadcastMember{"a/b/1", "GPU-7"});
  REQUIRE(std::get<NodeJoin>(join).rank == 3);
  BroadcastSeat seat{.id = {}, .ranks = 8, .rank = 7};
  for (std::size_t i = 0; i < seat.id.size(); ++i) seat.id[i] = static_cast<std::byte>(i * 3);
  for (const NodeJoinAnswer& answer :
       {NodeJoinAnswer(seat), NodeJoinAnswer(JoinWait{milliseconds(12)}),
        NodeJoinAnswer(JoinPull{"because"})}) {
    REQUIRE(Must(DecodeNodeJoinAnswer(json::Dump(ToJson(answer)))) == answer);
  }
  REQUIRE(Must(DecodeNodeJoinAnswer(
              json::Dump(ToJson(NodeJoinAnswer(JoinPull{std::string(5000, 'x')}))))) ==
          NodeJoinAnswer(JoinPull{std::string(1024, 'x')}));

  const auto refused = [](json::Json body, const char* field, json::Json value) {
    body[field] = std::move(value);
    const auto answer = DecodeNodeJoinAnswer(json::Dump(body));
    REQUIRE(answer.status().code() == StatusCode::kInvalidArgument);
    REQUIRE_THAT(answer.status().message(), Catch::Contains(field));
  };
  const json::Json good = ToJson(NodeJoinAnswer(seat));
  refused(good, "id", "AAAA");
  refused(good, "id", "not base64");
  refused(good, "seat", 0);
  refused(good, "seat", 8);
  refused(good, "ranks", 1);
  refused(good, "ranks", 1025);
  refused(good, "type", "Throne");
  refused(ToJson(NodeJoinAnswer(JoinWait{milliseconds(1)})), "askAgainMs", 0);
  refused(ToJson(NodeJoinAnswer(JoinWait{milliseconds(1)})), "askAgainMs", 10'001);
  const auto refused_request = [](const char* field, json::Json value) {
    json::Json body = ToJson(NodeJoin{"lease", 3, {"domain", "GPU-7"}});
    body[field] = std::move(value);
    const auto message = DecodeNodeMessage(json::Dump(body));
    REQUIRE(message.status().code() == StatusCode::kInvalidArgument);
    REQUIRE_THAT(message.status().message(), Catch::Contains(field));
  };
  refused_request("gpu", std::string(65, 'x'));
  refused_request("domain", std::string(257, 'x'));
  refused_request("gpu", 7);
  refused_request("rank", 65536);
  refused_request("type", "Leave");
  // What an agent that knows nothing of this answers.
  REQUIRE(DecodeNodeJoinAnswer(json::Dump(NodeError(InvalidArgument("request.first: missing"))))
              .status()
              .code() == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace rouse::transfer
