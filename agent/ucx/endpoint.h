// UCX, wrapped: a connection to a peer's worker, the peer's keys, and one-sided reads over it.
//
//   auto endpoint = Endpoint::Connect(worker, address);
//   auto key = endpoint->OpenKey(rkey);
//   auto get = endpoint->Get({.into = local, .memory = &registered, .from = remote, .key = &*key});
//   while (!get->Poll()) worker.Progress();
//
// Peers' addresses and keys are opaque bytes that UCX parses without knowing their length, so they
// are handed over in a padded buffer and only between MinBytes and MaxBytes long.
//
// Lifetime: the worker outlives the endpoint, the endpoint outlives its keys and gets.
// Threads: all of it belongs to the thread that drives the worker.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "agent/ucx/context.h"
#include "agent/ucx/worker.h"
#include "common/result.h"

struct ucp_ep;
struct ucp_rkey;

namespace rouse::ucx {

/// What is accepted from a peer. Real ones are some hundred bytes.
inline constexpr std::size_t kMinAddressBytes = 16;
inline constexpr std::size_t kMaxAddressBytes = 16u << 10;
inline constexpr std::size_t kMinKeyBytes = 9;
inline constexpr std::size_t kMaxKeyBytes = 4u << 10;

/// A peer's key, opened for one endpoint.
class RemoteKey {
 public:
  ucp_rkey* handle() const { return key_.get(); }

 private:
  friend class Endpoint;
  struct Destroy {
    void operator()(ucp_rkey* key) const;
  };
  explicit RemoteKey(ucp_rkey* key) : key_(key) {}

  std::unique_ptr<ucp_rkey, Destroy> key_;
};

/// A read under way. Move-only. Destroying it does not stop it: the bytes may be written until the
/// endpoint is closed.
class GetRequest {
 public:
  /// nullopt while under way; then how it ended, again and again.
  std::optional<Status> Poll();

 private:
  friend class Endpoint;
  struct Free {
    void operator()(void* request) const;
  };
  explicit GetRequest(void* request) : request_(request) {}
  explicit GetRequest(Status ended) : ended_(std::move(ended)) {}

  std::unique_ptr<void, Free> request_;
  std::optional<Status> ended_;
};

/// One read: fills `into`, which lies inside `memory`, from the peer's address `from`.
struct GetArguments {
  std::span<std::byte> into;
  const RegisteredMemory* memory = nullptr;
  std::uint64_t from = 0;
  const RemoteKey* key = nullptr;
};

class Endpoint {
 public:
  /// Does not wait for the peer: a peer that is gone shows in the first read. InvalidArgument for
  /// an address that cannot be one, Unavailable when no transport reaches the peer.
  static Result<std::unique_ptr<Endpoint>> Connect(Worker& worker, std::string_view address);
  /// Closes without waiting for reads under way; they write nothing afterwards.
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  /// InvalidArgument for bytes that cannot be a key, Unavailable when no transport connects the
  /// memories.
  Result<RemoteKey> OpenKey(std::string_view rkey);

  /// Starts a read. Failure to start is the request's status.
  GetRequest Get(const GetArguments& arguments);

  /// Ok until the connection broke; then Unavailable with UCX's reason.
  const Status& status() const { return *status_; }

  /// What UCX picked for reads, "cma/memory" or "tcp/eth0": known once the connection is up.
  std::string Transport() const;

 private:
  Endpoint(Worker& worker, std::unique_ptr<Status> status)
      : worker_(worker), status_(std::move(status)) {}

  Worker& worker_;
  ucp_ep* handle_ = nullptr;
  std::unique_ptr<Status> status_;  // at a fixed place: UCX's error callback writes it
};

/// Picks the transport of reads out of UCX's description of an endpoint (Endpoint::Transport).
std::string ParseTransport(std::string_view endpoint_info);

}  // namespace rouse::ucx
