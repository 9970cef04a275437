// The engine socket against clients that are broken or hostile. A fake host stands in for the
// weights.

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <mutex>
#include <random>
#include <thread>

#include "agent/engine/document.h"
#include "agent/engine/server.h"
#include "agent/tests/fake_engine.h"
#include "common/tests/eventually.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;

namespace {

class FakeHost final : public EngineHost {
 public:
  WeightOffer Offer(std::uint32_t) override {
    return {
        .identity = TestIdentity(), .reason = "fake", .storage_allowed = true, .settled = settled};
  }
  void OnRankConnected(const HelloRequest&, WeightsFrom) override { ++connected; }
  void OnRankDisconnected(std::uint32_t) override { --connected; }
  void OnRefused(const HelloRequest&, const std::string&) override {}
  void OnPhase(std::uint32_t, const PhaseRequest&) override {}
  void OnAnswered(std::string_view, bool ok) override { ++(ok ? answered : errors); }
  Result<std::optional<ReadyWeights>> Weights(std::uint32_t) override {
    if (!arrived) return std::optional<ReadyWeights>();
    ReadyWeights ready;
    ready.shape = {.arena_bytes = 1, .slab_bytes = std::vector<std::uint64_t>(1, 1)};
    ready.manifest = "{}";
    return std::optional(std::move(ready));
  }
  Result<ArenaShape> CreateArena(const HelloRequest&, std::uint64_t bytes) override {
    return ArenaShape{.arena_bytes = bytes, .slab_bytes = {bytes}};
  }
  Result<std::vector<OwnedFd>> Slabs(std::uint32_t, std::size_t, std::size_t count) override {
    std::vector<OwnedFd> fds;
    for (std::size_t i = 0; i < count; ++i) fds.push_back(*MakeDocument("slab", "slab"));
    return fds;
  }
  void OnCacheUse(const CacheUseRequest& use) override {
    lookups += static_cast<int>(use.lookups.size());
  }
  std::uint64_t HeldOn(const std::string& gpu) override { return gpu == "GPU-1" ? 77 : 0; }
  Status Publish(const HelloRequest&, const OwnedFd& manifest,
                 const PublishRequest& request) override {
    return ReadDocument(manifest.get(), request.manifest_bytes).status();
  }
  Result<std::optional<OpenedStream>> OpenStream(const HelloRequest&,
                                                 const OpenStreamRequest& request) override {
    if (request.folder != "/model") return FailedPrecondition("another folder");
    if (!arrived) return std::optional<OpenedStream>();
    OpenedStream opened{.shape = {.slots = 2}, .slots = {}};
    for (int i = 0; i < 2; ++i) opened.slots.push_back(*MakeDocument("slot", "slot"));
    return std::optional(std::move(opened));
  }
  Result<std::optional<StreamedBatch>> NextBatch(const NextBatchRequest& request) override {
    if (request.batch > 1) return DataLoss("a file is cut off");
    if (!arrived) return std::optional<StreamedBatch>();
    return std::optional(StreamedBatch{.batch = request.batch});
  }
  void CloseStream(const CloseStreamRequest&) override { ++streams_closed; }
  Status ReleaseArena(std::uint32_t) override {
    if (!sleeps) return FailedPrecondition("it was not told to sleep");
    ++released;
    return {};
  }
  Result<std::optional<ArenaShape>> AwaitArena(std::uint32_t) override {
    if (lost) return Unavailable("no weights will come");
    if (!placed) return std::optional<ArenaShape>();
    return std::optional(ArenaShape{.arena_bytes = 1, .slab_bytes = {1}});
  }
  CommandBook::Core OnCoreAttached(const AttachRequest& request) override {
    const std::scoped_lock lock(mutex);
    return book.Attach(request);
  }
  void OnCoreGone(CommandBook::Core core) override {
    const std::scoped_lock lock(mutex);
    book.Leave(core);
  }
  std::optional<Command> NextCommand(CommandBook::Core core) override {
    const std::scoped_lock lock(mutex);
    return book.Next(core);
  }
  void OnCommandDone(CommandBook::Core core, const CommandDoneRequest& done) override {
    const std::scoped_lock lock(mutex);
    book.Done(core, done);
  }
  Result<Command> Begin(CommandKind kind, std::chrono::milliseconds limit) {
    const std::scoped_lock lock(mutex);
    return book.Begin(kind, limit);
  }
  std::optional<CommandOutcome> Outcome() {
    const std::scoped_lock lock(mutex);
    return book.TakeOutcome();
  }

  std::mutex mutex;
  CommandBook book;
  std::atomic<int> released{0};
  std::atomic<bool> sleeps{true};
  std::atomic<bool> placed{false};
  std::atomic<bool> lost{false};

  std::atomic<int> connected{0};
  std::atomic<int> answered{0};
  std::atomic<int> errors{0};
  std::atomic<int> streams_closed{0};
  std::atomic<int> lookups{0};
  std::atomic<bool> arrived{false};
  std::atomic<bool> settled{true};
};

std::string SocketPath() {
  static std::atomic<int> number{0};
  return "/tmp/rouse-engine-test-" + std::to_string(::getpid()) + "-" + std::to_string(number++);
}

int OpenFds() {
  int count = 0;
  DIR* const folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

template <typename Condition>
bool Soon(Condition done, std::chrono::milliseconds longest = 10s) {
  return test::Eventually(done, longest);
}

struct Fixture {
  explicit Fixture(EngineServerLimits limits = {}) {
    auto started = EngineServer::Start(path, host, limits);
    REQUIRE(started.ok());
    server = *std::move(started);
  }

  FakeEngine Connect() {
    auto engine = FakeEngine::Connect(path);
    REQUIRE(engine.ok());
    return *std::move(engine);
  }

  /// The server still serves somebody who behaves.
  void CheckAlive() {
    FakeEngine good = Connect();
    auto welcome = good.Hello(TestIdentity());
    REQUIRE(welcome.ok());
    CHECK(welcome->type() == "Welcome");
  }

  FakeHost host;
  std::string path = SocketPath();
  std::unique_ptr<EngineServer> server;
};

}  // namespace

TEST_CASE("Nonsense is answered with an error, and after enough of it the connection ends") {
  Fixture fixture;
  std::mt19937 random(7);
  for (int client = 0; client < 20; ++client) {
    FakeEngine engine = fixture.Connect();
    for (int i = 0; i < 40; ++i) {
      std::string text(1 + random() % 4096, '\0');
      for (char& c : text) c = static_cast<char>(random());
      if (!engine.Send(text).ok()) break;
      auto answer = engine.Receive();
      if (!answer.ok()) break;
      CHECK(answer->type() == "Error");
    }
    CHECK_FALSE(engine.Hello(TestIdentity()).ok());  // It was ended.
  }
  fixture.CheckAlive();
}

TEST_CASE("Valid JSON of any shape is answered or refused") {
  Fixture fixture;
  std::mt19937 random(8);
  const json::Json values[] = {
      nullptr,    true,    -1, 1e308, "x", json::Json::array({1}), json::Json::object(),
      UINT64_MAX, "Hello", 1};
  const char* const types[] = {
      "Hello",        "Phase",       "AwaitWeights", "CreateArena",  "GetSlabs",   "Publish",
      "OpenStream",   "NextBatch",   "CloseStream",  "ReleaseArena", "AwaitArena", "Attach",
      "AwaitCommand", "CommandDone", "HeldMemory",   "CacheUse",     "x"};
  const char* const keys[] = {
      "rank",          "first", "count",     "bytes",    "timeoutMs", "manifestBytes", "name",
      "atUs",          "pid",   "worldSize", "identity", "protocol",  "version",       "engine",
      "folder",        "files", "batch",     "released", "reason",    "core",          "cores",
      "engineVersion", "id",    "ok",        "values",   "error",     "lookups"};
  int answered = 0;
  for (int client = 0; client < 100; ++client) {
    FakeEngine engine = fixture.Connect();
    if (client % 2 == 0) REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
    for (int i = 0; i < 30; ++i) {
      json::Json request = {{"type", types[random() % std::size(types)]}};
      for (const char* key : keys) {
        if (random() % 2 == 0) request[key] = values[random() % std::size(values)];
      }
      request["timeoutMs"] = 0;
      auto answer = engine.Ask(request);
      if (!answer.ok()) break;
      ++answered;
    }
  }
  CHECK(answered > 1000);
  fixture.CheckAlive();
}

TEST_CASE("Descriptors that nobody asked for are closed, however many") {
  Fixture fixture;
  fixture.CheckAlive();
  const int before = OpenFds();
  {
    FakeEngine engine = fixture.Connect();
    REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
    const std::vector<int> many(64, STDIN_FILENO);
    for (int i = 0; i < 10; ++i) {
      auto answer = engine.Ask({{"type", "Phase"}, {"name", "LoadStarted"}, {"atUs", 1}}, many);
      REQUIRE(answer.ok());
      CHECK(answer->message().find("64 descriptors") != std::string::npos);
    }
    // More than the protocol allows, past our own sending function.
    const std::string text = "{}";
    iovec part{const_cast<char*>(text.data()), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 200)] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * 200);
    for (int i = 0; i < 200; ++i)
      std::memcpy(CMSG_DATA(header) + i * sizeof i, &many[0], sizeof(int));
    REQUIRE(::sendmsg(engine.socket(), &message, 0) > 0);
    CHECK(engine.Receive()->code() == "ResourceExhausted");
  }
  CHECK(Soon([&] { return OpenFds() <= before; }));
  fixture.CheckAlive();
}

TEST_CASE("A message over 128 KiB is refused, and the conversation goes on") {
  Fixture fixture;
  FakeEngine engine = fixture.Connect();
  const std::string huge(140 << 10, ' ');
  REQUIRE(::send(engine.socket(), huge.data(), huge.size(), 0) > 0);
  CHECK(engine.Receive()->code() == "ResourceExhausted");
  CHECK(engine.Hello(TestIdentity())->type() == "Welcome");
}

TEST_CASE("A client that never reads costs its own connection and nobody's time") {
  Fixture fixture({.max_connections = 16, .hello_deadline = 600s, .send_deadline = 300ms});
  FakeEngine deaf = fixture.Connect();
  REQUIRE(deaf.Hello(TestIdentity())->type() == "Welcome");
  const int flags = ::fcntl(deaf.socket(), F_GETFL);
  REQUIRE(::fcntl(deaf.socket(), F_SETFL, flags | O_NONBLOCK) == 0);
  const std::string request = json::Dump({{"type", "Phase"}, {"name", "LoadStarted"}, {"atUs", 1}});
  bool full = false;  // Neither takes anything from the other any more.
  const bool dropped = Soon(
      [&] {
        while (::send(deaf.socket(), request.data(), request.size(), MSG_NOSIGNAL) > 0) {
        }
        full = full || errno == EAGAIN;
        if (errno != EAGAIN) return true;
        fixture.CheckAlive();
        return false;
      },
      60s);
  CHECK(full);
  CHECK(dropped);
  CHECK(fixture.host.errors == 0);  // It was not dropped for what it asked.
  CHECK(Soon([&] { return fixture.host.connected == 0; }));
}

TEST_CASE("One client more than is allowed is refused") {
  Fixture fixture({.max_connections = 2, .hello_deadline = 600s});
  FakeEngine first = fixture.Connect();
  FakeEngine second = fixture.Connect();
  FakeEngine refused = fixture.Connect();
  CHECK_FALSE(refused.Hello(TestIdentity()).ok());
  CHECK(first.Hello(TestIdentity())->type() == "Welcome");
}

TEST_CASE("A client that says nothing is let go after a while") {
  Fixture fixture({.max_connections = 2, .hello_deadline = 200ms});
  FakeEngine silent1 = fixture.Connect();
  FakeEngine silent2 = fixture.Connect();
  CHECK(silent1.Receive().status().code() == StatusCode::kUnavailable);
  CHECK(silent2.Receive().status().code() == StatusCode::kUnavailable);
  CHECK(fixture.Connect().Hello(TestIdentity())->type() == "Welcome");
}

TEST_CASE("Clients that die at any moment leave nothing behind") {
  Fixture fixture;
  fixture.CheckAlive();
  const int before = OpenFds();
  for (int i = 0; i < 50; ++i) {
    FakeEngine engine = fixture.Connect();
    if (i % 3 > 0) REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
    if (i % 3 == 1) {
      REQUIRE(engine.Send(R"({"type":"AwaitWeights","rank":0,"timeoutMs":100000})").ok());
    } else if (i % 3 == 2) {
      REQUIRE(engine.Send(R"({"type":"CreateArena","rank":0,"bytes":4096})").ok());
    }
  }
  CHECK(Soon([&] { return fixture.host.connected == 0 && OpenFds() <= before; }));
}

TEST_CASE("Waiting for weights ends with them, with the time, or with the agent") {
  auto fixture = std::make_unique<Fixture>();
  FakeEngine waiting = fixture->Connect();
  REQUIRE(waiting.Hello(TestIdentity())->body["source"] == "Peer");
  CHECK(waiting.Ask({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 50}})->code() ==
        "DeadlineExceeded");
  REQUIRE(waiting.Send(R"({"type":"AwaitWeights","rank":0,"timeoutMs":60000})").ok());
  CHECK(waiting.Receive(100ms).status().code() == StatusCode::kDeadlineExceeded);
  fixture->host.arrived = true;
  fixture->server->Wake();
  auto answer = waiting.Receive();
  REQUIRE(answer.ok());
  CHECK(answer->type() == "Weights");
  CHECK(answer->fds.size() == 1);

  fixture->host.arrived = false;
  REQUIRE(waiting.Send(R"({"type":"AwaitWeights","rank":0,"timeoutMs":60000})").ok());
  CHECK(waiting.Receive(50ms).status().code() == StatusCode::kDeadlineExceeded);
  const std::string path = fixture->path;
  fixture.reset();
  CHECK(waiting.Receive().status().code() == StatusCode::kUnavailable);
  CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("A Hello before the offer is settled is answered after a while") {
  Fixture fixture({.settle_deadline = 500ms});
  fixture.host.settled = false;
  FakeEngine engine = fixture.Connect();
  const auto before = std::chrono::steady_clock::now();
  CHECK(engine.Hello(TestIdentity())->type() == "Welcome");
  CHECK(std::chrono::steady_clock::now() - before >= 500ms);
}

TEST_CASE("A Hello before the offer is settled is answered when it is") {
  Fixture fixture({.settle_deadline = 600s});
  fixture.host.settled = false;
  FakeEngine early = fixture.Connect();
  {
    FakeEngine dies = fixture.Connect();
    REQUIRE(dies.Send("{}").ok());
  }
  std::thread settles([&] {
    std::this_thread::sleep_for(100ms);
    fixture.host.settled = true;
    fixture.server->Wake();
  });
  const auto asked = std::chrono::steady_clock::now();
  const auto answer = early.Hello(TestIdentity());
  const auto waited = std::chrono::steady_clock::now() - asked;
  settles.join();
  REQUIRE(answer.ok());
  CHECK(answer->body["source"] == "Peer");
  CHECK(waited < 60s);  // Long before the deadline.
}

TEST_CASE("An engine hears how much of its GPU the agent holds, before it says who it is") {
  Fixture fixture;
  FakeEngine engine = fixture.Connect();
  json::Json ask = {
      {"type", "HeldMemory"}, {"protocol", "rouse-engine"}, {"version", 1}, {"gpu", "GPU-1"}};
  const auto held = engine.Ask(ask);
  CHECK(held->type() == "Held");
  CHECK(held->body["bytes"] == 77);
  ask["version"] = 2;
  CHECK(engine.Ask(ask)->type() == "Error");
}

TEST_CASE("An engine tells what it found in its caches on a connection of its own") {
  Fixture fixture;
  FakeEngine engine = fixture.Connect();
  const json::Json lookup = {{"cache", "triton"}, {"hits", 1},    {"misses", 0},
                             {"where", ""},       {"reason", ""}, {"factors", json::Json::array()}};
  const json::Json use = {{"type", "CacheUse"},
                          {"protocol", "rouse-engine"},
                          {"version", 1},
                          {"rank", 0},
                          {"lookups", {lookup, lookup}}};
  CHECK(engine.Ask(use)->type() == "Ok");
  CHECK(fixture.host.lookups == 2);
}

TEST_CASE("A manifest that is no memory, or of another size, is refused") {
  Fixture fixture;
  FakeEngine engine = fixture.Connect();
  REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine.Ask({{"type", "CreateArena"}, {"rank", 0}, {"bytes", 4096}})->type() == "Arena");
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const OwnedFd out(pipe[0]);
  const OwnedFd in(pipe[1]);
  const auto publish = [&](int fd) {
    return engine.Ask({{"type", "Publish"}, {"rank", 0}, {"manifestBytes", 2}}, {fd});
  };
  CHECK(publish(out.get())->message().find("no memfd") != std::string::npos);
  const OwnedFd other = *MakeDocument("{ }", "x");
  CHECK(publish(other.get())->message().find("3 bytes, 2 were announced") != std::string::npos);
  const OwnedFd good = *MakeDocument("{}", "x");
  CHECK(publish(good.get())->type() == "Ok");
}

TEST_CASE("A stream's answers come when they are there, and say so when they are not") {
  Fixture fixture;
  const auto connect = [&] {
    FakeEngine engine = fixture.Connect();
    REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
    return engine;
  };
  const auto open = [](const std::string& folder, int timeout_ms) {
    return json::Json{{"type", "OpenStream"},
                      {"rank", 0},
                      {"folder", folder},
                      {"files", {{{"name", "a.safetensors"}, {"bytes", 9}}}},
                      {"timeoutMs", timeout_ms}};
  };
  const auto next = [](int batch, int timeout_ms) {
    return json::Json{{"type", "NextBatch"},
                      {"rank", 0},
                      {"batch", batch},
                      {"released", 0},
                      {"timeoutMs", timeout_ms}};
  };
  FakeEngine engine = connect();
  CHECK(engine.Ask(next(0, 0))->message().find("send OpenStream first") != std::string::npos);
  CHECK(engine.Ask(open("/other", 0))->message() == "another folder");
  CHECK(engine.Ask(next(0, 0))->code() == "FailedPrecondition");  // Nothing was opened.
  CHECK(engine.Ask(open("/model", 20))->type() == "Pending");
  REQUIRE(engine.Send(json::Dump(open("/model", 60'000))).ok());
  CHECK(engine.Receive(50ms).status().code() == StatusCode::kDeadlineExceeded);
  fixture.host.arrived = true;
  fixture.server->Wake();
  const auto stream = engine.Receive();
  REQUIRE(stream->type() == "Stream");
  CHECK(stream->fds.size() == 2);
  CHECK(engine.Ask(open("/model", 0))->message().find("last stream") != std::string::npos);
  CHECK(engine.Ask(next(0, 0))->type() == "Batch");
  CHECK(engine.Ask(next(2, 0))->code() == "DataLoss");
  fixture.host.arrived = false;
  CHECK(engine.Ask(next(1, 0))->type() == "Pending");
  // Another rank that comes or goes may be what this one waits for.
  REQUIRE(engine.Send(json::Dump(next(1, 60'000))).ok());
  CHECK(engine.Receive(50ms).status().code() == StatusCode::kDeadlineExceeded);
  FakeEngine other = connect();
  fixture.host.arrived = true;
  other.Close();
  CHECK(engine.Receive()->type() == "Batch");
  CHECK(engine.Ask({{"type", "CloseStream"}, {"rank", 0}, {"reason", ""}})->type() == "Ok");
  CHECK(fixture.host.streams_closed == 1);
  CHECK(engine.Ask(next(1, 0))->code() == "FailedPrecondition");
  CHECK(engine.Ask(open("/model", 0))->type() == "Stream");
}

TEST_CASE("A stale socket is replaced, anything else at its path is not") {
  const std::string path = SocketPath();
  FakeHost host;
  {
    auto server = EngineServer::Start(path, host);
    REQUIRE(server.ok());
    REQUIRE(::link(path.c_str(), (path + ".stale").c_str()) == 0);
  }
  REQUIRE(::rename((path + ".stale").c_str(), path.c_str()) == 0);
  CHECK(EngineServer::Start(path, host).ok());
  const OwnedFd file(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  REQUIRE(file.valid());
  CHECK(EngineServer::Start(path, host).status().code() == StatusCode::kAlreadyExists);
  CHECK(::access(path.c_str(), F_OK) == 0);
  ::unlink(path.c_str());
  CHECK(EngineServer::Start(std::string(200, 'x'), host).status().code() ==
        StatusCode::kInvalidArgument);
}

TEST_CASE("A command reaches a core that waits at once, and its end reaches the host") {
  Fixture fixture;
  FakeEngine core = fixture.Connect();
  REQUIRE(core.Attach()->type() == "Attached");
  CHECK(core.AwaitCommand(0)->type() == "Pending");
  REQUIRE(core.Send(R"({"type":"AwaitCommand","timeoutMs":10000})").ok());
  REQUIRE(Soon([&] { return fixture.host.Begin(CommandKind::kSleep, 5s).ok(); }));
  const auto begun = std::chrono::steady_clock::now();
  fixture.server->Wake();
  const auto command = core.Receive();
  REQUIRE(command.ok());
  CHECK(std::chrono::steady_clock::now() - begun < 1s);
  CHECK(command->body["command"] == "Sleep");
  CHECK(command->body["drainMs"] == 5000);
  CHECK(core.AwaitCommand(0)->type() == "Error");
  REQUIRE(core.CommandDone(command->body["id"], {{"gpuUsedBytes", 7}})->type() == "Ok");
  const auto outcome = fixture.host.Outcome();
  REQUIRE(outcome.has_value());
  CHECK(outcome->values.at("gpuUsedBytes") == 7);
}

TEST_CASE("A core that dies with a command, or while it waits for one, is noticed") {
  Fixture fixture;
  FakeEngine core = fixture.Connect();
  REQUIRE(core.Attach()->type() == "Attached");
  REQUIRE(fixture.host.Begin(CommandKind::kWake, 0s).ok());
  SECTION("with a command") {
    REQUIRE(core.AwaitCommand()->type() == "Command");
  }
  SECTION("before it has asked") {}
  core.Close();
  CHECK(Soon([&] {
    const auto outcome = fixture.host.Outcome();
    return outcome && !outcome->status.ok();
  }));
  fixture.CheckAlive();
}

TEST_CASE("A core's connection is no rank's, and a stranger's ends") {
  Fixture fixture;
  FakeEngine core = fixture.Connect();
  CHECK(core.Attach(0, 1, 2)->code() == "FailedPrecondition");
  CHECK_FALSE(core.AwaitCommand(0).ok());
  FakeEngine rank = fixture.Connect();
  REQUIRE(rank.Hello(TestIdentity())->type() == "Welcome");
  CHECK(rank.Attach()->type() == "Error");
  CHECK(fixture.host.connected == 1);
  FakeEngine both = fixture.Connect();
  REQUIRE(both.Attach()->type() == "Attached");
  CHECK(both.Hello(TestIdentity())->type() == "Error");
  CHECK(fixture.host.connected == 1);
}

TEST_CASE("A rank that slept waits for its arena, and is told when there is one or none") {
  Fixture fixture;
  fixture.host.arrived = true;
  FakeEngine engine = fixture.Connect();
  REQUIRE(engine.Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine.Ask({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 0}})->type() ==
          "Weights");
  fixture.host.sleeps = false;
  CHECK(engine.Ask({{"type", "ReleaseArena"}, {"rank", 0}})->code() == "FailedPrecondition");
  fixture.host.sleeps = true;
  REQUIRE(engine.Ask({{"type", "ReleaseArena"}, {"rank", 0}})->type() == "Ok");
  CHECK(fixture.host.released == 1);
  const json::Json await = {{"type", "AwaitArena"}, {"rank", 0}, {"timeoutMs", 20}};
  CHECK(engine.Ask(await)->type() == "Pending");
  REQUIRE(engine.Send(R"({"type":"AwaitArena","rank":0,"timeoutMs":10000})").ok());
  SECTION("there is one") {
    fixture.host.placed = true;
    fixture.server->Wake();
    const auto arena = engine.Receive();
    REQUIRE(arena.ok());
    CHECK(arena->type() == "Arena");
    CHECK(arena->body["slabBytes"] == json::Json{1});
    REQUIRE(engine.AllSlabs(0, 1).ok());
    CHECK(engine.Ask({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 0}})->type() ==
          "Weights");
  }
  SECTION("there will be none") {
    fixture.host.lost = true;
    fixture.server->Wake();
    CHECK(engine.Receive()->message() == "no weights will come");
  }
}
