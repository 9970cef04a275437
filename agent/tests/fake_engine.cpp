#include "agent/tests/fake_engine.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "agent/engine/document.h"
#include "common/tests/eventually.h"
#include "common/tests/unwatched.h"

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

/// A mapping of a whole slab.
class Mapped {
 public:
  Mapped(int fd, std::size_t bytes, int flags)
      : bytes_(bytes), at_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0)) {}
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped() {
    if (ok()) ::munmap(at_, bytes_);
  }
  bool ok() const { return at_ != MAP_FAILED; }
  char* data() const { return static_cast<char*>(at_); }

 private:
  std::size_t bytes_;
  void* at_;
};

Status Expect(const Result<EngineAnswer>& answer, const std::string& type) {
  if (!answer.ok()) return answer.status();
  if (answer->type() == type) return Status();
  return FailedPrecondition("expected " + type + ", got " + answer->body.dump());
}

}  // namespace

Identity TestIdentity(std::uint32_t rank) {
  return {{"model", "test/model"},
          {"dtype", "bfloat16"},
          {"engine", "fake"},
          {"rank", std::to_string(rank)}};
}

std::string TestBytes(std::size_t bytes, std::uint32_t seed) {
  const Unwatched unwatched;
  std::mt19937_64 random(seed);
  std::string out(bytes, '\0');
  for (std::size_t at = 0; at < bytes; at += sizeof(std::uint64_t)) {
    const std::uint64_t word = random();
    std::memcpy(out.data() + at, &word, std::min(sizeof word, bytes - at));
  }
  return out;
}

WeightManifest TestManifest(const Identity& identity, std::uint32_t rank, std::uint64_t bytes,
                            std::uint64_t chunk_bytes) {
  WeightManifest manifest;
  manifest.identity = identity;
  manifest.rank = rank;
  manifest.arena_bytes = bytes;
  manifest.chunk_bytes = chunk_bytes;
  manifest.allocations = {{.offset = 0, .bytes = bytes}};
  manifest.tensors = {{.name = "weight",
                       .kind = TensorKind::kParameter,
                       .allocation = 0,
                       .offset = 0,
                       .shape = {static_cast<std::int64_t>(bytes)},
                       .stride = {1},
                       .dtype = "uint8"}};
  return manifest;
}

Result<FakeEngine> FakeEngine::Connect(const std::string& path) {
  auto socket = SeqpacketDial(path);
  test::Eventually([&] {
    if (!socket.ok()) socket = SeqpacketDial(path);
    return socket.ok();
  });
  if (!socket.ok()) return socket.status();
  return FakeEngine(*std::move(socket));
}

Status FakeEngine::Send(std::string_view text, const std::vector<int>& fds) {
  auto sent = SeqpacketSend(socket_.get(), text, fds);
  return sent.status();
}

Result<EngineAnswer> FakeEngine::Receive(milliseconds timeout) {
  pollfd entry{socket_.get(), POLLIN, 0};
  if (::poll(&entry, 1, static_cast<int>(timeout.count())) <= 0) {
    return DeadlineExceeded("no answer from the agent");
  }
  ROUSE_ASSIGN_OR_RETURN(auto message, SeqpacketReceive(socket_.get()));
  if (!message) return DeadlineExceeded("no answer from the agent");
  ROUSE_ASSIGN_OR_RETURN(json::Json body, json::Parse(message->body, "answer"));
  return EngineAnswer{std::move(body), std::move(message->fds)};
}

Result<EngineAnswer> FakeEngine::Ask(const json::Json& request, const std::vector<int>& fds) {
  ROUSE_RETURN_IF_ERROR(Send(request.dump(), fds));
  return Receive();
}

Result<EngineAnswer> FakeEngine::Hello(const Identity& identity, std::uint32_t rank,
                                       std::uint32_t world_size, int version) {
  return Ask({{"type", "Hello"},
              {"protocol", "rouse-engine"},
              {"version", version},
              {"pid", ::getpid()},
              {"rank", rank},
              {"worldSize", world_size},
              {"engine", "fake"},
              {"engineVersion", "1"},
              {"identity", ToJson(identity)}});
}

Result<EngineAnswer> FakeEngine::Phase(const std::string& name) {
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  return Ask({{"type", "Phase"}, {"name", name}, {"atUs", now.count()}});
}

Result<EngineAnswer> FakeEngine::Attach(std::uint32_t core, std::uint32_t cores, int version) {
  return Ask({{"type", "Attach"},
              {"protocol", "rouse-engine"},
              {"version", version},
              {"pid", ::getpid()},
              {"engine", "fake"},
              {"engineVersion", "1"},
              {"core", core},
              {"cores", cores}});
}

Result<EngineAnswer> FakeEngine::AwaitCommand(std::int64_t timeout_ms) {
  return Ask({{"type", "AwaitCommand"}, {"timeoutMs", timeout_ms}});
}

Result<EngineAnswer> FakeEngine::CommandDone(std::int64_t id, const json::Json& values) {
  return Ask({{"type", "CommandDone"}, {"id", id}, {"ok", true}, {"values", values}});
}

Result<EngineAnswer> FakeEngine::CommandFailed(std::int64_t id, const std::string& error) {
  return Ask({{"type", "CommandDone"}, {"id", id}, {"ok", false}, {"error", error}});
}

Result<std::vector<OwnedFd>> FakeEngine::AllSlabs(std::uint32_t rank, std::size_t count) {
  std::vector<OwnedFd> slabs;
  while (slabs.size() < count) {
    const std::size_t part = std::min(count - slabs.size(), kMaxMessageFds);
    auto answer =
        Ask({{"type", "GetSlabs"}, {"rank", rank}, {"first", slabs.size()}, {"count", part}});
    ROUSE_RETURN_IF_ERROR(Expect(answer, "Slabs"));
    if (answer->fds.size() != part) return Internal("wrong number of descriptors");
    for (OwnedFd& fd : answer->fds) slabs.push_back(std::move(fd));
  }
  return slabs;
}

Result<EngineAnswer> FakeEngine::CreateFillPublish(const Identity& identity, std::uint32_t rank,
                                                   const std::string& bytes,
                                                   std::uint64_t chunk_bytes, bool placeholders) {
  auto arena = Ask({{"type", "CreateArena"}, {"rank", rank}, {"bytes", bytes.size()}});
  if (!arena.ok() || arena->type() != "Arena") return arena;
  const auto sizes = arena->body["slabBytes"].get<std::vector<std::size_t>>();
  ROUSE_ASSIGN_OR_RETURN(const auto slabs, AllSlabs(rank, sizes.size()));
  std::size_t at = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Mapped mapped(slabs[i].get(), sizes[i], MAP_SHARED);
    if (!mapped.ok()) return FromErrno(errno, "map a slab to fill it");
    {
      const Unwatched unwatched;
      std::memcpy(mapped.data(), bytes.data() + at, sizes[i]);
    }
    at += sizes[i];
  }
  const std::string text =
      json::Dump(ToJson(TestManifest(identity, rank, bytes.size(), chunk_bytes)));
  ROUSE_ASSIGN_OR_RETURN(const OwnedFd document, MakeDocument(text, "test-manifest"));
  json::Json request = {{"type", "Publish"}, {"rank", rank}, {"manifestBytes", text.size()}};
  if (placeholders) request["placeholders"] = true;
  return Ask(request, {document.get()});
}

Result<std::string> FakeEngine::AwaitAndRead(std::uint32_t rank, std::int64_t timeout_ms) {
  auto weights = Ask({{"type", "AwaitWeights"}, {"rank", rank}, {"timeoutMs", timeout_ms}});
  ROUSE_RETURN_IF_ERROR(Expect(weights, "Weights"));
  if (weights->fds.size() != 1) return Internal("expected one descriptor beside Weights");
  ROUSE_ASSIGN_OR_RETURN(const std::string text,
                         ReadDocument(weights->fds[0].get(), weights->body["manifestBytes"]));
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(text, "manifest"));
  ROUSE_ASSIGN_OR_RETURN(const WeightManifest manifest, ManifestFromJson(document, "manifest"));
  if (manifest.chunk_digests.empty()) return Internal("the manifest carries no digests");
  const auto sizes = weights->body["slabBytes"].get<std::vector<std::size_t>>();
  ROUSE_ASSIGN_OR_RETURN(const auto slabs, AllSlabs(rank, sizes.size()));
  std::string bytes;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Mapped writable(slabs[i].get(), sizes[i], MAP_SHARED);
    if (writable.ok())
      return Internal("a slab of published weights can be mapped shared and written");
    const Mapped mapped(slabs[i].get(), sizes[i], MAP_PRIVATE);
    if (!mapped.ok()) return FromErrno(errno, "map a slab privately");
    {
      const Unwatched unwatched;
      bytes.append(mapped.data(), sizes[i]);
    }
    mapped.data()[0] =
        static_cast<char>(mapped.data()[0] + 1);  // Ours alone: nobody else may see it.
  }
  return bytes;
}

}  // namespace rouse::agent
