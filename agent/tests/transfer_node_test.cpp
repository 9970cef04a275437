// Copies within a node, with host memory in place of a GPU's: all but the copy itself is the same.

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

#include "agent/socket/seqpacket.h"
#include "agent/tests/fake_gpu.h"
#include "agent/tests/paths.h"
#include "agent/tests/temp_folder.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/publisher.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A published arena, and what a target learns of it over HTTP.
struct Source {
  explicit Source(std::uint64_t bytes = 37 * kMiB + 1234, std::uint64_t slab_bytes = 8 * kMiB,
                  std::shared_ptr<const memory::Memory> memory = memory::HostMemory())
      : arena(RandomArena(bytes, slab_bytes, 3, std::move(memory))),
        publisher(Must(Publisher::Create({.leases = {},
                                          .program = kTransferPeerProgram,
                                          .node_folder = folder.path(),
                                          .node_socket = "uid-0.sock"}))) {
    Must(publisher->Publish(arena, ManifestOf(*arena, 0, kChunkBytes)));
    opened = Must(publisher->Open("test/target"));
  }
  NodeSource Node() const {
    return {"test/source", folder.path() + "/" + opened.node_socket, opened.lease};
  }

  agent::TempFolder folder;
  std::shared_ptr<memory::Arena> arena;
  std::unique_ptr<Publisher> publisher;
  OpenResponse opened;
};

std::unique_ptr<memory::Arena> Import(const Source& source) {
  return Must(
      ImportFromNode(source.Node(), source.opened.ranks[0], memory::HostMemory(), seconds(60)));
}

std::unique_ptr<memory::Arena> Empty(std::uint64_t bytes) {
  return Must(memory::Arena::Create({.bytes = bytes, .slab_bytes = 4 * kMiB}));
}

TEST_CASE("a copy within the node brings every byte, verified", "[node]") {
  const Source source;
  REQUIRE(source.opened.node_socket == "uid-0.sock");
  const auto from = Import(source);
  const auto to = Empty(source.arena->bytes());
  const auto engine = memory::HostCopyEngine(3);
  std::vector<PullProgress> progress;
  const auto report =
      CopyFromNode(source.Node(), source.opened.ranks[0].manifest, *from, *to, *engine, {}, {},
                   [&](const auto& now) { progress.push_back(now); });
  REQUIRE(report.status() == Status());
  REQUIRE(SameBytes(*to, *source.arena));
  REQUIRE(report->transport == "node/host");
  REQUIRE(report->counters.bytes_verified == source.arena->bytes());
  REQUIRE(report->counters.chunks_verified == 10);
  REQUIRE(progress.back().counters == report->counters);
}

TEST_CASE("more slabs than one message carries come in several", "[node]") {
  const Source source(70 * 65536 + 5, 65536);
  REQUIRE(source.arena->slab_count() == 71);
  REQUIRE(SameBytes(*Import(source), *source.arena));
}

// 751,698,368 bytes of an fp8 model were read over the network for want of this.
TEST_CASE("an only slab that ends within a page of the GPU's can be had", "[node]") {
  const auto gpu = std::make_shared<testing::FakeGpuMemory>();
  const Source source(3 * kMiB + 4096, 8 * kMiB, gpu);
  const auto from = Must(ImportFromNode(source.Node(), source.opened.ranks[0], gpu, seconds(60)));
  REQUIRE(SameBytes(*from, *source.arena));
  REQUIRE(from->slab_bytes() % kChunkBytes == 0);  // What copies in pieces asks for.
}

TEST_CASE("slabs stay readable after the source has withdrawn them", "[node]") {
  const Source source;
  const auto from = Import(source);
  source.publisher->Withdraw();
  REQUIRE(SameBytes(*from, *source.arena));
}

TEST_CASE("a flipped byte is found, and the chunk named", "[node]") {
  const Source source;
  source.arena->span()[5 * kChunkBytes + 7] ^= std::byte{1};
  const auto from = Import(source);
  const auto to = Empty(source.arena->bytes());
  const auto engine = memory::HostCopyEngine(2);
  const auto report = CopyFromNode(source.Node(), source.opened.ranks[0].manifest, *from, *to,
                                   *engine, {}, {}, nullptr);
  REQUIRE(report.status().code() == StatusCode::kDataLoss);
  REQUIRE_THAT(report.status().message(),
               Catch::Contains("test/source") && Catch::Contains("chunk 5 of rank 0"));
}

TEST_CASE("a copy that is stopped ends", "[node]") {
  const Source source;
  const auto from = Import(source);
  const auto to = Empty(source.arena->bytes());
  const auto engine = memory::HostCopyEngine(1);
  std::stop_source stop;
  const auto report =
      CopyFromNode(source.Node(), source.opened.ranks[0].manifest, *from, *to, *engine, {},
                   stop.get_token(), [&](const auto&) { stop.request_stop(); });
  REQUIRE(report.status().code() == StatusCode::kCancelled);
}

TEST_CASE("only who holds a lease gets slabs", "[node]") {
  const Source source;
  const RemoteRank& rank = source.opened.ranks[0];
  const auto ask = [&](NodeSource node, const RemoteRank& wanted) {
    return ImportFromNode(node, wanted, memory::HostMemory(), seconds(60)).status();
  };
  NodeSource guessing = source.Node();
  guessing.lease = std::string(32, '0');
  REQUIRE(ask(guessing, rank).code() == StatusCode::kNotFound);

  RemoteRank other = rank;
  other.manifest.rank = 1;
  REQUIRE_THAT(ask(source.Node(), other).message(), Catch::Contains("rank 1 is not published"));

  RemoteRank longer = rank;
  longer.slabs.insert(longer.slabs.begin(), rank.slabs.front());
  REQUIRE_THAT(ask(source.Node(), longer).message(), Catch::Contains("rank 0 has 5"));

  Must(source.publisher->Close(source.opened.lease));
  REQUIRE(ask(source.Node(), rank).code() == StatusCode::kNotFound);
}

TEST_CASE("peers that are not there, or do not answer, are told apart in time", "[node]") {
  const Source source;
  NodeSource absent = source.Node();
  absent.socket += ".none";
  const RemoteRank& rank = source.opened.ranks[0];
  REQUIRE(ImportFromNode(absent, rank, memory::HostMemory(), seconds(60)).status().code() ==
          StatusCode::kUnavailable);

  const std::string path = source.folder.path() + "/silent.sock";
  const auto listener = agent::SeqpacketListener::Listen(path);
  REQUIRE(listener.ok());
  NodeSource silent = source.Node();
  silent.socket = path;
  const auto answer = ImportFromNode(silent, rank, memory::HostMemory(), milliseconds(200));
  REQUIRE(answer.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(answer.status().message(), Catch::Contains("silent.sock"));
}

TEST_CASE("who speaks nonsense costs itself the connection and nobody else", "[node]") {
  const Source source;
  const auto say = [&](const std::string& text) -> std::string {
    const auto socket = Must(agent::SeqpacketDial(source.Node().socket));
    REQUIRE(*agent::SeqpacketSend(socket.get(), text, {}));
    const auto answer = agent::SeqpacketReceive(socket.get());
    if (!answer.ok()) return "closed";
    const auto after = agent::SeqpacketReceive(socket.get());
    REQUIRE_FALSE(after.ok());  // closed behind the error
    return (*answer)->body;
  };
  REQUIRE_THAT(say("\xff\xfe nonsense"), Catch::Contains("InvalidArgument"));
  REQUIRE_THAT(say("[]"), Catch::Contains("InvalidArgument"));
  REQUIRE_THAT(say(R"({"protocol":"rouse-node","version":2})"), Catch::Contains("rouse-node 2"));
  REQUIRE_THAT(
      say(R"({"protocol":"rouse-node","version":1,"lease":"x","rank":0,"first":0,"count":1000})"),
      Catch::Contains("count"));
  REQUIRE_THAT(
      say(R"({"protocol":"rouse-node","version":1,"lease":"x","rank":-1,"first":0,"count":1})"),
      Catch::Contains("rank"));

  // Connections that say nothing, and one that sends descriptors nobody asked for.
  std::vector<memory::OwnedFd> idle;
  for (int i = 0; i < 20; ++i) idle.push_back(Must(agent::SeqpacketDial(source.Node().socket)));
  const auto giver = Must(agent::SeqpacketDial(source.Node().socket));
  REQUIRE(*agent::SeqpacketSend(giver.get(), "{}", {0}));
  REQUIRE_FALSE(agent::SeqpacketReceive(giver.get()).ok());
  REQUIRE(SameBytes(*Import(source), *source.arena));
}

TEST_CASE("a silent connection is closed in the end", "[node]") {
  const agent::TempFolder folder;
  const auto share =
      Must(NodeShare::Start(folder.path(), "a.sock",
                            [](const NodeRequest&) { return Result<SharedSlabs>(SharedSlabs{}); },
                            {.max_connections = 2, .idle_deadline = milliseconds(50)}));
  const auto socket = Must(agent::SeqpacketDial(folder.path() + "/a.sock"));
  REQUIRE_FALSE(agent::SeqpacketReceive(socket.get()).ok());
}

TEST_CASE("only a name can be a socket's", "[node]") {
  for (const char* name : {"", ".", "..", "../x", "a/b", ".hidden", "a b", "\n"}) {
    REQUIRE_FALSE(IsNodeSocketName(name));
  }
  REQUIRE(IsNodeSocketName("9b2a1f3c-0001-4a6e-8d4f-1c2b3a4d5e6f.sock"));
  REQUIRE(NodeShare::Start("/nonexistent", "a.sock", nullptr).status().code() ==
          StatusCode::kNotFound);
}

}  // namespace
}  // namespace rouse::transfer
