// HTTP as both programs use it: a blocking client and a small server.
//
// cpprestsdk (the client) and Boost.Beast (the server, and the client among ourselves) stay behind
// this header: their types appear nowhere else, their exceptions become Status. Their headers cost
// tens of seconds a file; this is the one seam.
//
// cpprestsdk's own server does not tell a handler whose certificate it has seen, and its client
// reads all authorities of the system for each TLS connection, 0.1 s, before it asks whom to trust
// instead.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/tls/context.h"

namespace rouse::http {

/// Compares header names without regard to case.
struct HeaderLess {
  bool operator()(const std::string& a, const std::string& b) const;
};
using Headers = std::map<std::string, std::string, HeaderLess>;

struct Request {
  std::string method = "GET";
  /// Path and query as they go on the wire, already encoded: "/api/v1/pods?limit=500".
  std::string target = "/";
  Headers headers;
  std::string body;
  /// Longest silence while waiting for headers or the next part of the body. Must be positive.
  std::chrono::milliseconds timeout{30'000};
  /// Longest time for the whole of a Send, from connecting to the last byte of the body: a server
  /// that sends a byte now and then is never silent. A Stream has no such end.
  std::chrono::milliseconds deadline{120'000};
  /// On a server with TLS: who asks, by its certificate; none: it has shown none.
  std::optional<tls::Identity> peer;
};

struct Response {
  int status = 200;
  Headers headers;
  std::string body;
};

/// How to speak TLS to a server of others'; all files are PEM and are read anew for each
/// connection, so rotated files are picked up.
struct TlsOptions {
  std::string ca_file;           ///< CA bundle to trust; empty: the system's.
  std::string certificate_file;  ///< Client certificate chain; empty: none.
  std::string key_file;          ///< Its key.
};

/// How to speak to one of ourselves: with the certificate of this moment, to `peer` and nobody
/// else. A connection that was made with other credentials is not used any more.
struct MutualTls {
  std::shared_ptr<const tls::CredentialStore> credentials;
  tls::Identity peer;
};

/// Stops a Client::Stream from another thread. Copies share one state. Thread-safe.
class CancelSource {
 public:
  CancelSource();
  void Cancel();
  bool cancelled() const;

  struct State;
  const std::shared_ptr<State>& state() const { return state_; }

 private:
  std::shared_ptr<State> state_;
};

/// Keeps connections to one server alive and sends requests over them. Thread-safe; every method
/// blocks. A failed or timed-out exchange is Unavailable or DeadlineExceeded; an HTTP error status
/// is a Response like any other.
class Client {
 public:
  /// `base` is "http://host:port" or "https://host:port", with an optional path prefix.
  static Result<std::unique_ptr<Client>> Create(const std::string& base,
                                                const TlsOptions& tls = {});
  /// For one of ourselves; `base` must be https. It can Send only. While there are no credentials,
  /// Send is Unavailable.
  static Result<std::unique_ptr<Client>> Create(const std::string& base, MutualTls tls);
  ~Client();

  /// Sends one request. When the connection breaks before any answer, as it does when the server
  /// had dropped it while idle, the request is sent once more over a new one: every request must be
  /// safe to repeat (ours are: deterministic names, preconditions, level-triggered reports). Bodies
  /// over `max_body_bytes` are ResourceExhausted, an answer that is not whole by request.deadline
  /// is DeadlineExceeded.
  Result<Response> Send(const Request& request, std::size_t max_body_bytes = 256u << 20);

  /// To one of ourselves, opens a connection for the next Send if none is open; to others, does
  /// nothing.
  Status Connect(std::chrono::milliseconds deadline);

  /// Receives a response line by line as it arrives, with back-pressure: `on_line` is called on a
  /// library thread, one call at a time, and no more is read until it returns. With a body it is
  /// sent once more, as Send does, when its connection breaks before any answer. Returns when the
  /// stream ends (ok), on_line returns an error (that error), it is cancelled (Cancelled), nothing
  /// arrives for request.timeout (DeadlineExceeded) or the connection breaks (Unavailable). A
  /// status other than 200 fills `error_response` and is FailedPrecondition. A line over
  /// `max_line_bytes` is ResourceExhausted.
  Status Stream(const Request& request, const CancelSource& cancel,
                const std::function<Status(std::string_view line)>& on_line,
                Response* error_response, std::size_t max_line_bytes = 16u << 20);

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Answers requests. Called on the server's threads, several at once; may block for a short time,
/// in which nobody else is served by that thread.
using Handler = std::function<Response(const Request&)>;

struct ServerTls {
  /// Read for each connection; while there are none, connections are closed at once.
  std::shared_ptr<const tls::CredentialStore> credentials;
  tls::ClientCertificate client = tls::ClientCertificate::kRequired;
};

struct ServerOptions {
  /// Bodies over it are answered with 413 without being read whole.
  std::size_t max_body_bytes = 4u << 20;
  int threads = 4;
  std::optional<ServerTls> tls;  ///< None: plain HTTP.
};

/// Listens on one address until destroyed. A connection ends after two minutes of silence, and with
/// TLS at the latest when either side's certificate does.
class Server {
 public:
  /// `host` "0.0.0.0" and port 0 (any) are allowed. An exception out of the handler is answered
  /// with 500 and logged.
  static Result<std::unique_ptr<Server>> Listen(const std::string& host, std::uint16_t port,
                                                Handler handler, const ServerOptions& options = {});
  /// Waits for handlers that run, and a moment for their answers to be taken.
  ~Server();

  std::uint16_t port() const;

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Sets the number of cpprestsdk's threads, which all clients share. Call first in main.
void SetThreads(int count);

/// The error body of docs/protocols.md for `status`, with the HTTP status that goes with its code.
Response ErrorResponse(const Status& status);
/// The Status that an error body carries; a body of another form becomes a Status with its text. Ok
/// for 200 only, the one status that ours answer with when it is.
Status ToStatus(const Response& response, std::string_view what);
/// 200 with a JSON body.
Response JsonResponse(std::string body);

/// Percent-encodes everything but unreserved characters.
std::string UrlEncode(std::string_view text);

}  // namespace rouse::http
