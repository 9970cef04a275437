#include "common/http_peer_client.h"

#include <poll.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

namespace rouse::http {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace bh = boost::beast::http;
using net::ip::tcp;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;

/// Connections to one server that are kept for the next request.
constexpr std::size_t kMaxIdle = 4;
constexpr std::uint32_t kMaxAnswerHeader = 64u << 10;

ErrorCode TimedOut() {
  return beast::error::timeout;
}

}  // namespace

/// One connection with an event loop of its own, which runs on whichever thread waits for it.
struct PeerClient::Connection {
  explicit Connection(const tls::ClientContext& of) : context(Shared(of)) {}

  // Another owner of it. Asio changes nothing of what it is only given.
  static SSL_CTX* Shared(const tls::ClientContext& of) {
    SSL_CTX_up_ref(of.get());
    return of.get();
  }

  // Runs what `start` begins, until it is done or it is time to give up. `start` gets the handler
  // to pass on.
  template <typename Start>
  ErrorCode Await(Clock::time_point until, const Start& start) {
    bool done = false;
    ErrorCode result;
    start([&](ErrorCode error, auto&&...) {
      result = error;
      done = true;
    });
    io.restart();
    io.run_until(until);
    if (done) return result;
    ErrorCode ignored;
    beast::get_lowest_layer(stream).socket().close(ignored);
    io.restart();
    io.run();  // What was under way ends at once now, and refers to this frame until then.
    return TimedOut();
  }

  // As far as the server is heard of. What it has sent unasked may be a session ticket.
  bool IsOpen() {
    pollfd socket{.fd = beast::get_lowest_layer(stream).socket().native_handle(),
                  .events = POLLRDHUP,
                  .revents = 0};
    return ::poll(&socket, 1, 0) == 0;
  }

  net::io_context io{1};
  net::ssl::context context;  ///< That of all connections with the same credentials.
  beast::ssl_stream<beast::tcp_stream> stream{io, context};
  beast::flat_buffer buffer;
};

PeerClient::PeerClient(std::string host, std::uint16_t port, std::string what, std::string prefix,
                       MutualTls tls)
    : host_(std::move(host)),
      port_(port),
      what_(std::move(what)),
      prefix_(std::move(prefix)),
      tls_(std::move(tls)) {}

PeerClient::~PeerClient() = default;

Result<Response> PeerClient::Send(const Request& request, std::size_t max_body_bytes) {
  const Clock::time_point until = Clock::now() + request.deadline;
  bool answered = false;
  auto result = SendOnce(request, max_body_bytes, until, false, &answered);
  if (result.ok() || answered || result.status().code() != StatusCode::kUnavailable) return result;
  return SendOnce(request, max_body_bytes, until, true, &answered);
}

std::unique_ptr<PeerClient::Connection> PeerClient::TakeIdle() {
  const auto current = tls_.credentials->ForClients();
  const std::lock_guard lock(mutex_);
  while (!idle_.empty()) {
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    if (current.ok() && connection->context.native_handle() == current->get() &&
        connection->IsOpen()) {
      return connection;
    }
  }
  return nullptr;
}

void PeerClient::Keep(std::unique_ptr<Connection> connection) {
  const std::lock_guard lock(mutex_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(connection));
}

Status PeerClient::Connect(std::chrono::milliseconds deadline) {
  auto connection = TakeIdle();
  if (connection == nullptr) {
    auto made = Open(Clock::now() + deadline, deadline);
    if (!made.ok()) return made.status().WithContext("connect to " + what_);
    connection = *std::move(made);
  }
  Keep(std::move(connection));
  return {};
}

Result<std::unique_ptr<PeerClient::Connection>> PeerClient::Open(
    Clock::time_point until, std::chrono::milliseconds silence) {
  ROUSE_ASSIGN_OR_RETURN(const tls::ClientContext context, tls_.credentials->ForClients());
  auto connection = std::make_unique<Connection>(context);
  ROUSE_RETURN_IF_ERROR(tls::Expect(connection->stream.native_handle(), tls_.peer));
  ErrorCode error;
  tcp::resolver resolver(connection->io);
  const auto found =
      resolver.resolve(host_, std::to_string(port_), tcp::resolver::numeric_service, error);
  if (error) return Unavailable("find " + host_ + ": " + error.message());
  const auto failed = [&](const std::string& step) {
    if (error == TimedOut()) return DeadlineExceeded(step + ": no answer in time");
    const std::string why = tls::WhyNotBelieved(connection->stream.native_handle(), tls_.peer);
    return Unavailable(step + ": " + (why.empty() ? error.message() : why));
  };
  auto& lowest = beast::get_lowest_layer(connection->stream);
  const auto soon = [&] { return std::min(until, Clock::now() + silence); };
  error = connection->Await(soon(), [&](auto handler) { lowest.async_connect(found, handler); });
  if (error) return failed("connect");
  lowest.socket().set_option(tcp::no_delay(true), error);
  error = connection->Await(soon(), [&](auto handler) {
    connection->stream.async_handshake(net::ssl::stream_base::client, handler);
  });
  if (error) return failed("TLS handshake");
  return connection;
}

Result<Response> PeerClient::SendOnce(const Request& request, std::size_t max_body_bytes,
                                      Clock::time_point until, bool fresh, bool* answered) {
  const std::string what = request.method + " " + what_ + request.target;
  auto connection = fresh ? nullptr : TakeIdle();
  if (connection == nullptr) {
    auto made = Open(until, request.timeout);
    if (!made.ok()) return made.status().WithContext(what);
    connection = *std::move(made);
  }
  const auto soon = [&] { return std::min(until, Clock::now() + request.timeout); };
  const auto failed = [&](const ErrorCode& error) -> Status {
    if (error == bh::error::body_limit) {
      return Status(StatusCode::kResourceExhausted, what + ": body is over the limit of " +
                                                        std::to_string(max_body_bytes) + " bytes");
    }
    if (error != TimedOut()) return Unavailable(what + ": " + error.message());
    if (Clock::now() < until) {
      return DeadlineExceeded(what + ": nothing came for " +
                              std::to_string(request.timeout.count()) + " ms");
    }
    return DeadlineExceeded(what + ": not answered whole within " +
                            std::to_string(request.deadline.count()) + " ms");
  };

  bh::request<bh::string_body> message(bh::verb::unknown, prefix_ + request.target, 11);
  message.method_string(request.method);
  const bool v6 = host_.find(':') != std::string::npos;
  message.set(bh::field::host, (v6 ? "[" + host_ + "]" : host_) + ":" + std::to_string(port_));
  if (!request.body.empty()) message.set(bh::field::content_type, "application/json");
  for (const auto& [name, value] : request.headers) message.set(name, value);
  message.body() = request.body;
  message.prepare_payload();
  ErrorCode error = connection->Await(
      soon(), [&](auto handler) { bh::async_write(connection->stream, message, handler); });
  if (error) return failed(error);

  bh::response_parser<bh::string_body> parser;
  parser.header_limit(kMaxAnswerHeader);
  parser.body_limit(max_body_bytes);
  while (!parser.is_done()) {  // Piece by piece: only silence ends it before the deadline.
    error = connection->Await(soon(), [&](auto handler) {
      bh::async_read_some(connection->stream, connection->buffer, parser, handler);
    });
    *answered = *answered || parser.is_header_done();
    if (error) return failed(error);
  }
  Response response;
  response.status = static_cast<int>(parser.get().result_int());
  for (const auto& field : parser.get()) {
    response.headers[std::string(field.name_string())] = std::string(field.value());
  }
  response.body = std::move(parser.get().body());
  if (parser.get().keep_alive()) Keep(std::move(connection));
  return response;
}

}  // namespace rouse::http
