#include "common/http_peer_client.h"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <sstream>

#include "common/host_in_url.h"

namespace rouse::http {
namespace {

namespace beast = boost::beast;
namespace bh = boost::beast::http;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;

/// Connections to one server that are kept for the next request.
constexpr std::size_t kMaxIdle = 4;
constexpr std::uint32_t kMaxAnswerHeader = 64u << 10;
/// As much as TLS sends in one piece.
constexpr std::size_t kPiece = 16u << 10;

}  // namespace

PeerClient::PeerClient(std::string host, std::uint16_t port, std::string what, std::string prefix,
                       MutualTls tls)
    : server_{.host = std::move(host), .port = port, .identity = tls.peer},
      what_(std::move(what)),
      prefix_(std::move(prefix)),
      credentials_(std::move(tls.credentials)) {}

Result<Response> PeerClient::Send(const Request& request, std::size_t max_body_bytes) {
  const Clock::time_point until = Clock::now() + request.deadline;
  bool answered = false;
  auto result = SendOnce(request, max_body_bytes, until, false, &answered);
  if (result.ok() || answered || result.status().code() != StatusCode::kUnavailable) return result;
  return SendOnce(request, max_body_bytes, until, true, &answered);
}

std::unique_ptr<tls::Connection> PeerClient::TakeIdle() {
  const auto current = credentials_->ForClients();
  const std::lock_guard lock(mutex_);
  while (!idle_.empty()) {
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    if (current.ok() && connection->context() == *current && connection->IsOpen()) {
      return connection;
    }
  }
  return nullptr;
}

void PeerClient::Keep(std::unique_ptr<tls::Connection> connection) {
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

Result<std::unique_ptr<tls::Connection>> PeerClient::Open(Clock::time_point until,
                                                          std::chrono::milliseconds silence) {
  ROUSE_ASSIGN_OR_RETURN(tls::ClientContext context, credentials_->ForClients());
  return tls::Connection::Open(server_, std::move(context), until, silence);
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
  const auto failed = [&](const Status& why) -> Status {
    if (why.code() != StatusCode::kDeadlineExceeded) return why.WithContext(what);
    if (Clock::now() < until) {
      return DeadlineExceeded(what + ": nothing came for " +
                              std::to_string(request.timeout.count()) + " ms");
    }
    return DeadlineExceeded(what + ": not answered whole within " +
                            std::to_string(request.deadline.count()) + " ms");
  };

  if (const Status sent = connection->Write(ToText(request), soon()); !sent.ok()) {
    return failed(sent);
  }
  bh::response_parser<bh::string_body> parser;
  parser.header_limit(kMaxAnswerHeader);
  parser.body_limit(max_body_bytes);
  beast::flat_buffer buffer;
  ErrorCode error = bh::error::need_more;
  while (!parser.is_done()) {  // Piece by piece: only silence ends it before the deadline.
    if (error == bh::error::need_more || buffer.size() == 0) {
      const auto got = connection->Read(buffer.prepare(kPiece).data(), kPiece, soon());
      if (!got.ok()) return failed(got.status());
      buffer.commit(*got);
    }
    buffer.consume(parser.put(buffer.data(), error));
    *answered = *answered || parser.is_header_done();
    if (error == bh::error::body_limit) {
      return Status(StatusCode::kResourceExhausted, what + ": body is over the limit of " +
                                                        std::to_string(max_body_bytes) + " bytes");
    }
    if (error && error != bh::error::need_more) return failed(Unavailable(error.message()));
  }
  Response response;
  response.status = static_cast<int>(parser.get().result_int());
  for (const auto& field : parser.get()) {
    response.headers[std::string(field.name_string())] = std::string(field.value());
  }
  response.body = std::move(parser.get().body());
  // What came after the answer would be taken for the next one.
  if (parser.get().keep_alive() && buffer.size() == 0) Keep(std::move(connection));
  return response;
}

std::string PeerClient::ToText(const Request& request) const {
  bh::request<bh::string_body> message(bh::verb::unknown, prefix_ + request.target, 11);
  message.method_string(request.method);
  message.set(bh::field::host, HostInUrl(server_.host) + ":" + std::to_string(server_.port));
  if (!request.body.empty()) message.set(bh::field::content_type, "application/json");
  for (const auto& [name, value] : request.headers) message.set(name, value);
  message.body() = request.body;
  message.prepare_payload();
  std::ostringstream text;
  text << message;
  return std::move(text).str();
}

}  // namespace rouse::http
