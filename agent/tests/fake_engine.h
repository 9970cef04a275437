// Plays one rank of an engine over the real engine socket: what the plugin does, without vLLM.
// Misbehaves where a test asks it to.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "agent/socket/seqpacket.h"
#include "common/json.h"
#include "common/manifest.h"
#include "common/result.h"

namespace rouse::agent {

/// What one request was answered with.
struct EngineAnswer {
  json::Json body;
  std::vector<OwnedFd> fds;

  std::string type() const { return body.value("type", ""); }
  std::string message() const { return body.value("message", ""); }
  std::string code() const { return body.value("code", ""); }
};

Identity TestIdentity(std::uint32_t rank = 0);

/// `bytes` bytes that differ everywhere and depend on `seed`.
std::string TestBytes(std::size_t bytes, std::uint32_t seed);

/// One tensor over a whole arena.
WeightManifest TestManifest(const Identity& identity, std::uint32_t rank, std::uint64_t bytes,
                            std::uint64_t chunk_bytes = kChunkBytes);

class FakeEngine {
 public:
  /// Tries for 10 s, as the plugin does.
  static Result<FakeEngine> Connect(const std::string& path);

  /// Sends raw bytes, whatever they are.
  Status Send(std::string_view text, const std::vector<int>& fds = {});
  /// DeadlineExceeded when nothing comes; Unavailable when the agent ended the connection.
  Result<EngineAnswer> Receive(std::chrono::milliseconds timeout = std::chrono::seconds(60));
  /// Sends and receives.
  Result<EngineAnswer> Ask(const json::Json& request, const std::vector<int>& fds = {});

  Result<EngineAnswer> Hello(const Identity& identity, std::uint32_t rank = 0,
                             std::uint32_t world_size = 1, int version = 1);
  Result<EngineAnswer> Phase(const std::string& name);
  /// Begins a command connection instead of a rank's.
  Result<EngineAnswer> Attach(std::uint32_t core = 0, std::uint32_t cores = 1, int version = 1);
  Result<EngineAnswer> AwaitCommand(std::int64_t timeout_ms = 10'000);
  Result<EngineAnswer> CommandDone(std::int64_t id,
                                   const json::Json& values = json::Json::object());
  Result<EngineAnswer> CommandFailed(std::int64_t id, const std::string& error);
  /// Storage: an arena of these bytes, filled and published as `identity`'s. What the last answer
  /// was when something is refused.
  Result<EngineAnswer> CreateFillPublish(const Identity& identity, std::uint32_t rank,
                                         const std::string& bytes,
                                         std::uint64_t chunk_bytes = kChunkBytes,
                                         bool placeholders = false);
  /// Peer: waits for the weights, maps all slabs privately, and returns their bytes.
  Result<std::string> AwaitAndRead(std::uint32_t rank, std::int64_t timeout_ms = 20'000);

  /// Descriptors of all `count` slabs.
  Result<std::vector<OwnedFd>> AllSlabs(std::uint32_t rank, std::size_t count);

  int socket() const { return socket_.get(); }
  void Close() { socket_ = OwnedFd(); }

 private:
  explicit FakeEngine(OwnedFd socket) : socket_(std::move(socket)) {}

  OwnedFd socket_;
};

}  // namespace rouse::agent
