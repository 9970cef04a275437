// A connection to one of ourselves, over TLS.
//
// Straight over a socket: Boost.Asio's stream would hold 68 kB of buffers and, with an event loop
// for each connection, three descriptors, and most connections are kept for long and used seldom.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/tls/context.h"

struct bio_st;

namespace rouse::tls {

/// Whom a connection is to: `host` is a name or an address.
struct Server {
  std::string host;
  std::uint16_t port = 0;
  Identity identity;
};

/// Blocks, each call until its deadline: DeadlineExceeded. Whatever else fails is Unavailable.
/// After an error it is of no use any more. For one thread at a time.
class Connection {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  /// Fails with anybody but server.identity, and says why. Each step may take `silence`. Finding a
  /// host by its name takes as long as it takes.
  static Result<std::unique_ptr<Connection>> Open(const Server& server, ClientContext context,
                                                  Deadline until,
                                                  std::chrono::milliseconds silence);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  Status Write(std::string_view bytes, Deadline until);
  /// At least one byte.
  Result<std::size_t> Read(void* into, std::size_t size, Deadline until);

  /// As far as the server is heard of.
  bool IsOpen() const;
  /// What it was made with.
  const ClientContext& context() const { return context_; }

 private:
  Connection(int socket, ClientContext context);
  template <typename Step>
  Status Repeat(const Step& step, Deadline until);
  // What OpenSSL reads and writes by.
  static int Send(bio_st* bio, const char* bytes, int size);
  static int Receive(bio_st* bio, char* bytes, int size);
  static bio_st* MakeBio(Connection* connection);

  const int socket_;
  Deadline until_{};  ///< Of the call that runs.
  const ClientContext context_;
  const std::unique_ptr<ssl_st, void (*)(ssl_st*)> tls_;
};

}  // namespace rouse::tls
