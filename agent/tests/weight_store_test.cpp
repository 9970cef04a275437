// Weights in GPU memory, with memory of the host in the GPU's place: who has them, and how they
// come from a peer of the node.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <future>
#include <latch>
#include <mutex>

#include "agent/server/peer_pull.h"
#include "agent/server/weights.h"
#include "agent/tests/fake_broadcaster.h"
#include "agent/tests/fake_gpu.h"
#include "agent/tests/paths.h"
#include "agent/tests/temp_folder.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/source.h"
#include "common/http.h"
#include "common/tests/eventually.h"

namespace rouse::agent {
namespace {

using transfer::Must;
using transfer::ScopedVariable;
using namespace testing;

constexpr std::uint64_t kBytes = 9 * kMiB + 123;

HelloRequest Hello(const std::string& gpu) {
  return {.pid = 1, .rank = 0, .world_size = 1, .gpu = gpu, .identity = {{"model", "m"}}};
}

std::unique_ptr<WeightStore> Store(
    const std::shared_ptr<memory::Gpus>& gpus, const std::string& node_folder = "",
    std::uint64_t stage_bytes = 4 * kMiB,
    const std::shared_ptr<memory::Broadcasting>& broadcasting = nullptr) {
  const ScopedVariable variable("UCX_TLS", "tcp");
  transfer::RosterOptions roster{.window = std::chrono::milliseconds(1'500),
                                 .silence = std::chrono::milliseconds(10'000)};
  roster.rates.setup_seconds = 0;  // 9 MiB shall do.
  return std::make_unique<WeightStore>(
      Must(ucx::Context::Create()),
      Must(transfer::Publisher::Create({.leases = {},
                                        .program = kTransferPeerProgram,
                                        .node_folder = node_folder,
                                        .node_socket = "source.sock",
                                        .stage_bytes = stage_bytes,
                                        .broadcasting = broadcasting,
                                        .roster = roster})),
      WeightStoreOptions{.slab_bytes = 5 * kMiB, .digest_threads = 1, .gpus = gpus}, "none yet");
}

std::vector<std::byte> Content() {
  std::vector<std::byte> content(kBytes);
  for (std::size_t i = 0; i < kBytes; ++i) content[i] = static_cast<std::byte>(i * 31 >> 3);
  return content;
}

std::vector<std::byte> BytesOf(WeightStore& store, const ArenaShape& shape,
                               std::uint32_t rank = 0) {
  std::vector<std::byte> bytes;
  const auto fds = Must(store.Slabs(rank, 0, shape.slab_bytes.size()));
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const std::size_t at = bytes.size();
    bytes.resize(at + shape.slab_bytes[i]);
    REQUIRE(::pread(fds[i].get(), bytes.data() + at, shape.slab_bytes[i], 0) ==
            static_cast<ssize_t>(shape.slab_bytes[i]));
  }
  return bytes;
}

/// What a rank of an engine does on this GPU.
ArenaShape Fill(WeightStore& store, const HelloRequest& hello) {
  store.OnEngine(hello);
  const ArenaShape shape = Must(store.Create(hello, kBytes));
  const auto content = Content();
  const auto fds = Must(store.Slabs(hello.rank, 0, shape.slab_bytes.size()));
  std::size_t at = 0;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    REQUIRE(::pwrite(fds[i].get(), content.data() + at, shape.slab_bytes[i], 0) ==
            static_cast<ssize_t>(shape.slab_bytes[i]));
    at += shape.slab_bytes[i];
  }
  WeightManifest manifest;
  manifest.form = WeightForm::kProcessed;
  manifest.rank = hello.rank;
  manifest.identity = hello.identity;
  manifest.arena_bytes = kBytes;
  manifest.allocations = {{.offset = 0, .bytes = kBytes}};
  Must(store.Publish(hello, json::Dump(ToJson(manifest)), WeightStore::Content::kReadByEngine));
  return shape;
}

/// Until peers are served what all of `ranks` have filled.
void Offer(WeightStore& store, std::size_t ranks) {
  for (std::size_t i = 0; i < ranks; ++i) {
    REQUIRE(Must(store.Prepare({})) == WeightStore::Work::kDigested);
  }
  REQUIRE(Must(store.Prepare({})) == WeightStore::Work::kOffered);
}

ArenaShape Publish(WeightStore& store, const HelloRequest& hello) {
  const ArenaShape shape = Fill(store, hello);
  Offer(store, 1);
  return shape;
}

TEST_CASE("an engine's arena lies in the memory of its GPU", "[weights]") {
  const auto gpus = std::make_shared<FakeGpus>();
  const auto store = Store(gpus);
  const ArenaShape shape = Must(store->Create(Hello(kGpu), kBytes));
  CHECK(shape.gpu == kGpu);
  // Slabs are whole chunks there.
  CHECK(shape.slab_bytes == std::vector<std::uint64_t>{8 * kMiB, kMiB + 123});
  CHECK(Must(store->Create(Hello(""), kBytes)).gpu.empty());
  SECTION("and in the host's when the agent does not see that GPU") {
    const ArenaShape other = Must(store->Create(Hello("GPU-other"), kBytes));
    CHECK(other.gpu.empty());
    CHECK(other.slab_bytes == std::vector<std::uint64_t>{5 * kMiB, 4 * kMiB + 123});
  }
  SECTION("and in the host's when the GPU is full") {
    gpus->memory->full = true;
    CHECK(Must(store->Create(Hello(kGpu), kBytes)).gpu.empty());
  }
  SECTION("and in the host's when the agent was told so") {
    CHECK(Must(Store(nullptr)->Create(Hello(kGpu), kBytes)).gpu.empty());
  }
}

TEST_CASE("a GPU's memory is taken slab by slab, as its engine moves its weights over",
          "[weights]") {
  const auto gpus = std::make_shared<FakeGpus>();
  const auto store = Store(gpus);
  const ArenaShape shape = Must(store->Create(Hello(kGpu), kBytes));
  REQUIRE(shape.slab_bytes.size() == 2);
  CHECK(gpus->memory->created == 1);
  CHECK(store->HeldOn(kGpu) == kBytes);
  CHECK(store->HeldOn("GPU-other") == 0);
  CHECK(Must(store->Slabs(0, 0, 1)).size() == 1);
  CHECK(gpus->memory->created == 1);
  WeightManifest manifest;
  manifest.form = WeightForm::kProcessed;
  manifest.identity = {{"model", "m"}};
  manifest.arena_bytes = kBytes;
  manifest.allocations = {{.offset = 0, .bytes = kBytes}};
  const std::string document = json::Dump(ToJson(manifest));
  SECTION("and what was not taken cannot be published") {
    const Status status =
        store->Publish(Hello(kGpu), document, WeightStore::Content::kReadByEngine);
    CHECK(status.code() == StatusCode::kFailedPrecondition);
    CHECK_THAT(status.message(), Catch::Matchers::Contains("send GetSlabs first"));
  }
  SECTION("of which it may have none left, for a while") {
    gpus->memory->full = true;
    const auto refused = store->Slabs(0, 1, 1);
    CHECK(refused.status().code() == StatusCode::kResourceExhausted);
    CHECK_THAT(refused.status().message(), Catch::Matchers::Contains("the GPU is full"));
    gpus->memory->full = false;
    CHECK(Must(store->Slabs(0, 1, 1)).size() == 1);
    CHECK(gpus->memory->created == 2);
    Must(store->Publish(Hello(kGpu), document, WeightStore::Content::kReadByEngine));
  }
}

TEST_CASE("weights in GPU memory are offered without keys, those in host memory with",
          "[weights]") {
  const auto store = Store(std::make_shared<FakeGpus>());
  CHECK(Publish(*store, Hello(kGpu)).gpu == kGpu);
  const OpenResponse gpu = Must(store->Open("ns/target", true));
  REQUIRE(gpu.ranks.size() == 1);
  CHECK(transfer::InGpuMemory(gpu.ranks[0]));
  CHECK(gpu.ranks[0].stage_bytes == 4 * kMiB);
  CHECK(Must(OpenResponseFromJson(ToJson(gpu))) == gpu);
  CHECK(transfer::CheckSource("x", gpu.worker_address, gpu.ranks[0]).ok());
  Publish(*store, Hello(""));
  const OpenResponse host = Must(store->Open("ns/target", true));
  CHECK_FALSE(transfer::InGpuMemory(host.ranks.at(0)));
  CHECK(host.ranks[0].manifest.chunk_digests == gpu.ranks[0].manifest.chunk_digests);
}

TEST_CASE("placeholders are nobody's weights", "[weights]") {
  const auto store = Store(nullptr);
  const HelloRequest hello = Hello("");
  const ArenaShape shape = Must(store->Create(hello, kBytes));
  Must(store->Slabs(0, 0, shape.slab_bytes.size()));
  WeightManifest manifest;
  manifest.form = WeightForm::kProcessed;
  manifest.identity = hello.identity;
  manifest.arena_bytes = kBytes;
  manifest.allocations = {{.offset = 0, .bytes = kBytes}};
  const std::string document = json::Dump(ToJson(manifest));
  Must(store->Publish(hello, document, WeightStore::Content::kPlaceholders));
  CHECK(store->HasPlaceholders());
  REQUIRE(Must(store->Prepare({})) == WeightStore::Work::kDigested);
  CHECK(Must(store->Prepare({})) == WeightStore::Work::kNone);
  CHECK(store->Complete().ok());  // They can be given up.
  CHECK(store->Open("ns/target", true).status().code() == StatusCode::kUnavailable);
  CHECK_FALSE(store->holdings().weights);
  CHECK(store->holdings().bytes_by_source.storage == 0);
  CHECK(store->published_bytes() == 0);

  // The engine has begun anew, and has read them.
  CHECK(Publish(*store, hello).gpu.empty());
  CHECK_FALSE(store->HasPlaceholders());
  CHECK(store->holdings().weights->servable);
}

TEST_CASE("announced weights are promised, and nothing more", "[weights]") {
  const auto source = Store(std::make_shared<FakeGpus>());
  Publish(*source, Hello(kGpu));
  const WeightManifest manifest = Must(source->Open("ns/t", true)).ranks.at(0).manifest;
  const auto store = Store(std::make_shared<FakeGpus>());
  Must(store->Announce(manifest, 1, "pulled from a"));
  CHECK(store->Offer(0).identity == manifest.identity);
  CHECK(Must(store->Weights(0)) == std::nullopt);
  CHECK(store->Slabs(0, 0, 1).status().code() == StatusCode::kFailedPrecondition);
  CHECK(Must(store->Prepare({})) == WeightStore::Work::kNone);
  CHECK(store->Open("ns/u", true).status().code() == StatusCode::kUnavailable);
  CHECK(store->holdings().weights == std::nullopt);
  SECTION("their engine's GPU is waited for") {
    std::stop_source stop;
    auto waits =
        std::async(std::launch::async, [&] { return store->AwaitGpu(0, stop.get_token()); });
    CHECK(waits.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
    store->OnEngine(Hello(kGpu));
    CHECK(Must(waits.get())->gpu() == kGpu);
    store->OnEngineGone(0);
    stop.request_stop();
    CHECK(store->AwaitGpu(0, stop.get_token()).status().code() == StatusCode::kCancelled);
  }
  SECTION("an engine that takes no GPU memory cannot have them") {
    store->OnEngine(Hello(""));
    CHECK(store->AwaitGpu(0, {}).status().code() == StatusCode::kFailedPrecondition);
  }
  SECTION("an engine that loads for itself ends the promise") {
    Must(store->Create(Hello(kGpu), kBytes));
    CHECK(store->Announce(manifest, 1, "x").code() == StatusCode::kFailedPrecondition);
  }
}

/// A source agent's HTTP port.
std::unique_ptr<http::Server> Serve(WeightStore& store) {
  return Must(http::Server::Listen("127.0.0.1", 0, [&store](const http::Request& request) {
    const auto body = json::Parse(request.body, "request");
    if (!body.ok()) return http::ErrorResponse(body.status());
    if (request.target == "/v1/weights/stage") {
      const auto staged = store.StagePart(Must(StageRequestFromJson(*body)));
      return staged.ok() ? http::JsonResponse(json::Dump(StagedToJson(*staged)))
                         : http::ErrorResponse(staged.status());
    }
    if (request.target != "/v1/weights/open") {
      const auto lease = LeaseRequestFromJson(*body);
      if (!lease.ok()) return http::ErrorResponse(lease.status());
      const bool renew = request.target == "/v1/weights/renew";
      const Status done = renew ? store.Renew(lease->lease) : store.Close(lease->lease);
      return done.ok() ? http::JsonResponse("{}") : http::ErrorResponse(done);
    }
    const auto opened = store.Open("ns/target", true);
    return opened.ok() ? http::JsonResponse(json::Dump(ToJson(*opened)))
                       : http::ErrorResponse(opened.status());
  }));
}

/// One rank of two.
HelloRequest Half(std::uint32_t rank) {
  return {.pid = 1,
          .rank = rank,
          .world_size = 2,
          .gpu = rank == 0 ? kGpu : "GPU-second",
          .identity = {{"model", "m"}, {"rank", std::to_string(rank)}}};
}

std::shared_ptr<FakeGpus> TwoGpus() {
  auto gpus = std::make_shared<FakeGpus>();
  gpus->other = std::make_shared<FakeGpuMemory>("GPU-second");
  return gpus;
}

struct Pulling {
  explicit Pulling(const std::string& node_folder, std::uint64_t stage_bytes = 4 * kMiB,
                   const std::shared_ptr<memory::Broadcasting>& broadcasting = nullptr,
                   const std::vector<HelloRequest>& ranks = {Hello(kGpu)}) {
    source = Store(TwoGpus(), folder.path(), stage_bytes, broadcasting);
    for (const HelloRequest& rank : ranks) Fill(*source, rank);
    Offer(*source, ranks.size());
    server = Serve(*source);
    settings.launch_identity = "launch";
    settings.requester = "ns/target";
    settings.node_folder = node_folder == "shared" ? folder.path() : node_folder;
    settings.picker.refused_deadline = std::chrono::milliseconds(200);
    hooks.peers = [this] {
      return std::vector<Peer>{
          {"source", "node", "http://127.0.0.1:" + std::to_string(server->port())}};
    };
    hooks.on_opened = [this](const Peer&) {
      opened = true;
      if (when_opened) when_opened();
    };
    hooks.on_placed = [] {};
    settings.dial = [](const Peer& peer) { return http::Client::Create(peer.address); };
    hooks.on_complete = [] {};
    hooks.on_progress = [] {};
    hooks.on_verified = [](std::uint64_t) {};
    hooks.on_transfer = [this](const Status&, const transfer::PullCounters&, double,
                               const std::string& way) {
      const std::scoped_lock lock(mutex);
      transport = way;
    };
    hooks.on_put_aside = [](const Peer&, const Status&) {};
  }

  TempFolder folder;
  std::shared_ptr<FakeGpus> gpus = TwoGpus();
  std::unique_ptr<WeightStore> target = Store(gpus);
  std::unique_ptr<WeightStore> source;
  std::unique_ptr<http::Server> server;
  PeerPullSettings settings;
  PeerPullHooks hooks;
  std::function<void()> when_opened;
  bool opened = false;
  std::mutex mutex;
  std::string transport;  // of the rank that ended last
};

TEST_CASE("weights go from one GPU's memory to another's within the node", "[weights]") {
  Pulling pulling("shared");
  std::jthread engine;
  pulling.when_opened = [&] {
    engine = std::jthread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      pulling.target->OnEngine(Hello(kGpu));
    });
  };
  Must(PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {}));
  CHECK(pulling.transport == "node/cuda:7");
  const auto weights = Must(pulling.target->Weights(0));
  REQUIRE(weights);
  CHECK(weights->shape.gpu == kGpu);
  CHECK(BytesOf(*pulling.target, weights->shape) == Content());
  // And on from there.
  REQUIRE(Must(pulling.target->Prepare({})) == WeightStore::Work::kOffered);
  CHECK(transfer::InGpuMemory(Must(pulling.target->Open("ns/next", false)).ranks.at(0)));
}

TEST_CASE("ranks on GPUs of their own are copied at the same time", "[weights]") {
  Pulling pulling("shared", 0, nullptr, {Half(0), Half(1)});
  std::latch both(2);
  std::atomic<int> met = 0;
  const auto meet = [&] {
    both.count_down();
    if (test::Eventually([&] { return both.try_wait(); })) ++met;
  };
  pulling.gpus->memory->on_copy = meet;
  pulling.gpus->other->on_copy = meet;
  std::uint64_t verified = 0;
  pulling.hooks.on_verified = [&](std::uint64_t bytes) { verified = bytes; };
  for (const std::uint32_t rank : {0u, 1u}) pulling.target->OnEngine(Half(rank));
  Must(PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {}));
  CHECK(met == 2);
  CHECK(verified == 2 * kBytes);
  for (const std::uint32_t rank : {0u, 1u}) {
    const auto weights = Must(pulling.target->Weights(rank));
    REQUIRE(weights);
    CHECK(weights->shape.gpu == Half(rank).gpu);
    CHECK(BytesOf(*pulling.target, weights->shape, rank) == Content());
  }
  CHECK(pulling.source->lease_count() == 0);
}

TEST_CASE("a rank that cannot be had does not wait for another's engine", "[weights]") {
  Pulling pulling("shared", 0, nullptr, {Half(0), Half(1)});
  pulling.gpus->other->full = true;
  pulling.target->OnEngine(Half(1));  // The other rank's engine never comes.
  const Status status = PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {});
  CHECK_THAT(status.message(), Catch::Contains("the GPU is full"));
  CHECK(pulling.target->Weights(0).status().code() == StatusCode::kUnavailable);
}

TEST_CASE("weights go to several GPUs of a node by one broadcast, or from GPU to GPU",
          "[weights]") {
  using Mode = FakeBroadcaster::Mode;
  Hub hub;
  const Mode mode = GENERATE(Mode::kWorks, Mode::kFails, Mode::kAbsent);
  const auto broadcasting = std::make_shared<FakeBroadcasting>(hub, mode);
  Pulling pulling("shared", 4 * kMiB, std::make_shared<FakeBroadcasting>(hub));
  pulling.settings.broadcasting = broadcasting;
  struct Target {
    std::unique_ptr<WeightStore> store;
    std::string transport;
    Status status = Internal("not run");
  };
  std::vector<Target> targets(3);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const std::string gpu = "GPU-" + std::to_string(i + 1);
      targets[i].store = Store(std::make_shared<FakeGpus>(gpu));
      targets[i].store->OnEngine(Hello(gpu));
      threads.emplace_back([&pulling, &target = targets[i]] {
        PeerPullHooks hooks = pulling.hooks;
        hooks.on_opened = [](const Peer&) {};
        hooks.on_transfer = [&target](const Status&, const transfer::PullCounters&, double,
                                      const std::string& way) { target.transport = way; };
        target.status = PullFromPeers(*target.store, pulling.settings, hooks, {});
      });
    }
  }
  for (const Target& target : targets) {
    CHECK(target.status == Status());
    CHECK(target.transport == (mode == Mode::kWorks ? "broadcast/cuda:7" : "node/cuda:7"));
    const auto weights = Must(target.store->Weights(0));
    REQUIRE(weights);
    CHECK(BytesOf(*target.store, weights->shape) == Content());
    // And on from there.
    CHECK(Must(target.store->Prepare({})) == WeightStore::Work::kOffered);
  }
  if (mode == Mode::kWorks) CHECK(hub.seats.size() == 3);
  if (mode == Mode::kAbsent) CHECK(hub.seats.empty());
  CHECK(pulling.source->lease_count() == 0);
}

TEST_CASE("weights go from one GPU's memory to another's on another node, through copies",
          "[weights]") {
  // Without a folder in common, and with one of which the way within the node fails.
  const std::string folder = GENERATE("/nowhere", "shared");
  Pulling pulling(folder);
  pulling.gpus->memory->cannot_import = folder == "shared";
  pulling.when_opened = [&] { pulling.target->OnEngine(Hello(kGpu)); };
  Must(PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {}));
  CHECK_THAT(pulling.transport, Catch::StartsWith("tcp/"));
  const auto weights = Must(pulling.target->Weights(0));
  REQUIRE(weights);
  CHECK(weights->shape.gpu == kGpu);
  CHECK(BytesOf(*pulling.target, weights->shape) == Content());
  CHECK(pulling.source->lease_count() == 0);
}

TEST_CASE("weights in GPU memory that cannot be reached are not waited for", "[weights]") {
  std::string said;
  SECTION("on another node, when the peer makes no copies") {
    Pulling pulling("/nowhere", 0);
    const Status status = PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {});
    CHECK_FALSE(pulling.opened);
    said = status.message();
    CHECK_THAT(said, Catch::Contains("only agents of its node can read"));
  }
  SECTION("without a GPU") {
    Pulling pulling("shared");
    pulling.gpus->check = Unavailable("no CUDA driver");
    const Status status = PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {});
    CHECK_FALSE(pulling.opened);
    said = status.message();
    CHECK_THAT(said, Catch::Contains("no CUDA driver"));
    CHECK(pulling.target->Offer(0).identity == std::nullopt);
  }
  SECTION("when the engine is on a GPU that the agent does not see") {
    Pulling pulling("shared");
    pulling.when_opened = [&] { pulling.target->OnEngine(Hello("GPU-other")); };
    const Status status = PullFromPeers(*pulling.target, pulling.settings, pulling.hooks, {});
    CHECK_FALSE(status.ok());
    said = pulling.target->Offer(0).reason;
    CHECK_THAT(said, Catch::Contains("no such GPU"));
    CHECK(pulling.target->Weights(0).status().code() == StatusCode::kUnavailable);
  }
}

}  // namespace
}  // namespace rouse::agent
