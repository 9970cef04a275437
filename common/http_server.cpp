#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <condition_variable>
#include <thread>
#include <vector>

#include "common/http.h"
#include "common/log.h"

namespace rouse::http {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace bh = boost::beast::http;
using net::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr std::chrono::seconds kIdle{120};
constexpr std::chrono::seconds kHandshake{10};
/// What a client that is refused still sends is read for so long, or it would not read the refusal.
constexpr std::chrono::seconds kLinger{1};
constexpr std::size_t kMaxLinger = 16u << 20;
constexpr std::uint32_t kMaxHeader = 16u << 10;
/// Connections over this number are closed at once...
constexpr int kMaxConnections = 4'096;
/// ...and over this one after each answer: a silent one with TLS costs about 70 kB.
constexpr int kMaxKept = 512;
/// How long an answer may take to be written when the server ends.
constexpr std::chrono::seconds kLastAnswers{2};

/// What all connections share, and may outlive the server with.
struct Shared {
  Shared(Handler answer, ServerOptions listen)
      : handler(std::move(answer)), options(std::move(listen)) {}

  const Handler handler;
  const ServerOptions options;
  std::atomic<int> connections{0};

  std::mutex mutex;
  std::condition_variable idle;
  int busy = 0;  ///< Guarded by mutex: requests that are read and not answered yet.
  /// Guarded by mutex: made of these credentials.
  std::shared_ptr<const tls::Credentials> credentials;
  std::shared_ptr<net::ssl::context> context;

  /// nullptr while there are no credentials that are good.
  std::shared_ptr<net::ssl::context> Context() {
    auto current = options.tls->credentials->Get();
    const std::lock_guard lock(mutex);
    if (current == credentials) return context;
    credentials = std::move(current);
    context.reset();
    if (credentials == nullptr || credentials->certificate.empty()) return context;
    auto made = std::make_shared<net::ssl::context>(net::ssl::context::tls_server);
    const Status good = tls::SetUpServer(made->native_handle(), *credentials, options.tls->client);
    if (good.ok()) {
      context = std::move(made);
    } else {
      log::Error("nobody can be served with this certificate", {{"error", good.ToString()}});
    }
    return context;
  }
};

/// Counts one connection as long as it lives.
class Counted {
 public:
  explicit Counted(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {
    ++shared_->connections;
  }
  ~Counted() { --shared_->connections; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 protected:
  const std::shared_ptr<Shared> shared_;
};

Response TooLarge(std::size_t max_body_bytes) {
  Response response = ErrorResponse(
      Status(StatusCode::kResourceExhausted,
             "request body is over the limit of " + std::to_string(max_body_bytes) + " bytes"));
  response.status = 413;
  return response;
}

// What `handler` says; whatever it throws costs this request alone.
Response Ask(const Handler& handler, const Request& request) {
  try {
    return handler(request);
  } catch (const std::exception& error) {
    log::Error("request handler threw", {{"target", request.target}, {"error", error.what()}});
    return ErrorResponse(Internal("the request handler failed, see the log"));
  }
}

using Plain = beast::tcp_stream;
using Tls = beast::ssl_stream<beast::tcp_stream>;

/// One connection. Everything of it runs on its own strand; it lives as long as something is under
/// way.
template <typename Stream>
class Session : public Counted, public std::enable_shared_from_this<Session<Stream>> {
 public:
  Session(std::shared_ptr<Shared> shared, std::shared_ptr<net::ssl::context> context,
          tcp::socket socket)
      : Counted(std::move(shared)), context_(std::move(context)), stream_([&]() -> Stream {
          if constexpr (std::is_same_v<Stream, Tls>) {
            return Tls(beast::tcp_stream(std::move(socket)), *context_);
          } else {
            return Plain(std::move(socket));
          }
        }()) {
    ErrorCode ignored;
    Lowest().socket().set_option(tcp::no_delay(true), ignored);
  }

  void Start() {
    if constexpr (std::is_same_v<Stream, Tls>) {
      Lowest().expires_after(kHandshake);
      stream_.async_handshake(
          net::ssl::stream_base::server,
          [self = this->shared_from_this()](ErrorCode error) { self->Shaken(error); });
    } else {
      net::dispatch(Lowest().get_executor(),
                    [self = this->shared_from_this()] { self->ReadNext(); });
    }
  }

 private:
  beast::tcp_stream& Lowest() { return beast::get_lowest_layer(stream_); }

  void Shaken(ErrorCode error) {
    if constexpr (std::is_same_v<Stream, Tls>) {
      if (error) {
        log::Debug("TLS handshake failed", {{"error", error.message()}});
        return;
      }
      const auto peer = tls::PeerOf(stream_.native_handle());
      if (!peer.ok()) {
        log::Warning("a client is refused", {{"error", peer.status().message()}});
        return;
      }
      if (*peer) {
        peer_ = (*peer)->identity;
        EndAt((*peer)->not_after);
      }
      if (const auto own = tls::EndOfOwn(context_->native_handle())) EndAt(*own);
      ReadNext();
    }
  }

  void EndAt(tls::TimePoint at) { end_ = std::min(end_.value_or(at), at); }

  void ReadNext() {
    auto silence = std::chrono::duration_cast<std::chrono::milliseconds>(kIdle);
    if (end_) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          *end_ - std::chrono::system_clock::now());
      if (left.count() <= 0) return;
      silence = std::min(silence, left);
    }
    parser_.emplace();
    parser_->header_limit(kMaxHeader);
    parser_->body_limit(shared_->options.max_body_bytes);
    Lowest().expires_after(silence);
    bh::async_read(
        stream_, buffer_, *parser_,
        [self = this->shared_from_this()](ErrorCode error, std::size_t) { self->HasRead(error); });
  }

  void HasRead(ErrorCode error) {
    if (error == bh::error::body_limit) {
      return Refuse(TooLarge(shared_->options.max_body_bytes));
    }
    if (error == bh::error::header_limit) {
      Response refusal = ErrorResponse(InvalidArgument("the request's headers are too long"));
      refusal.status = 431;
      return Refuse(std::move(refusal));
    }
    if (error.category() == bh::make_error_code(bh::error::bad_method).category() &&
        error != bh::error::end_of_stream && error != bh::error::partial_message) {
      return Refuse(ErrorResponse(InvalidArgument("not an HTTP request: " + error.message())));
    }
    if (error) return;  // It went away, or was silent for too long.
    // It may have waited for long: whoever it is must still be so.
    if (end_ && *end_ <= std::chrono::system_clock::now()) return;
    auto& message = parser_->get();
    Request request;
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    for (const auto& field : message) {
      request.headers[std::string(field.name_string())] = std::string(field.value());
    }
    request.body = std::move(message.body());
    request.peer = peer_;
    const bool keep = message.keep_alive() && shared_->connections <= kMaxKept;
    const bool head = message.method() == bh::verb::head;
    parser_.reset();
    {
      const std::lock_guard lock(shared_->mutex);
      ++shared_->busy;
    }
    Answer(Ask(shared_->handler, request), keep, head, [this] {
      const std::lock_guard lock(shared_->mutex);
      if (--shared_->busy == 0) shared_->idle.notify_all();
    });
  }

  // Answers, and reads nothing more of what it says.
  void Refuse(Response refusal) {
    Answer(std::move(refusal), false, false, [] {});
  }

  template <typename Done>
  void Answer(Response response, bool keep, bool head, Done done) {
    answer_.emplace(static_cast<bh::status>(response.status), 11);
    answer_->keep_alive(keep);
    answer_->set(bh::field::content_type, "text/plain; charset=utf-8");
    for (const auto& [name, value] : response.headers) answer_->set(name, value);
    answer_->content_length(response.body.size());
    if (!head) answer_->body() = std::move(response.body);
    writer_.emplace(*answer_);
    Lowest().expires_after(kIdle);
    bh::async_write(stream_, *writer_,
                    [self = this->shared_from_this(), keep, done](ErrorCode error, std::size_t) {
                      done();
                      self->Answered(error, keep);
                    });
  }

  void Answered(ErrorCode error, bool keep) {
    writer_.reset();
    answer_.reset();
    if (error) return;
    if (keep) return ReadNext();
    ErrorCode ignored;
    Lowest().socket().shutdown(tcp::socket::shutdown_send, ignored);
    Lowest().expires_after(kLinger);
    Linger(0);
  }

  // A connection that is closed with bytes unread is reset, and what was written last is lost.
  void Linger(std::size_t so_far) {
    if (so_far >= kMaxLinger) return;
    Lowest().async_read_some(buffer_.prepare(16u << 10), [self = this->shared_from_this(), so_far](
                                                             ErrorCode error, std::size_t got) {
      if (!error) self->Linger(so_far + got);
    });
  }

  const std::shared_ptr<net::ssl::context> context_;  ///< Before the stream, which refers to it.
  Stream stream_;
  std::optional<tls::Identity> peer_;
  std::optional<tls::TimePoint> end_;  ///< The connection is not used any more from then on.
  beast::flat_buffer buffer_;
  std::optional<bh::request_parser<bh::string_body>> parser_;
  std::optional<bh::response<bh::string_body>> answer_;
  std::optional<bh::response_serializer<bh::string_body>> writer_;
};

}  // namespace

struct Server::Impl {
  Impl(Handler handler, const ServerOptions& options)
      : shared(std::make_shared<Shared>(std::move(handler), options)),
        io(options.threads),
        acceptor(net::make_strand(io)) {}

  ~Impl() {
    net::post(acceptor.get_executor(), [this] {
      ErrorCode ignored;
      acceptor.close(ignored);
    });
    {
      std::unique_lock lock(shared->mutex);
      shared->idle.wait_for(lock, kLastAnswers, [this] { return shared->busy == 0; });
    }
    io.stop();
    for (std::thread& thread : threads) thread.join();
  }

  Status Open(const std::string& host, std::uint16_t wanted) {
    ErrorCode error;
    tcp::resolver resolver(io);
    const auto found =
        resolver.resolve(host, std::to_string(wanted),
                         tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (!error) {
      const tcp::endpoint endpoint = *found.begin();
      acceptor.open(endpoint.protocol(), error);
      if (!error) acceptor.set_option(net::socket_base::reuse_address(true), error);
      if (!error) acceptor.bind(endpoint, error);
      if (!error) acceptor.listen(net::socket_base::max_listen_connections, error);
    }
    if (error) return Unavailable(error.message());
    port = acceptor.local_endpoint().port();
    return {};
  }

  void Start() {
    Accept();
    for (int i = 0; i < shared->options.threads; ++i) {
      threads.emplace_back([this] {
        pthread_setname_np(pthread_self(), "http-server");
        io.run();
      });
    }
  }

  void Accept() {
    acceptor.async_accept(net::make_strand(io), [this](ErrorCode error, tcp::socket socket) {
      if (!acceptor.is_open()) return;
      if (error) {
        // No descriptor is left, most likely: others end meanwhile.
        log::Warning("a connection cannot be taken", {{"error", error.message()}});
        retry.expires_after(std::chrono::milliseconds(100));
        retry.async_wait([this](ErrorCode stopped) {
          if (!stopped) Accept();
        });
        return;
      }
      Take(std::move(socket));
      Accept();
    });
  }

  void Take(tcp::socket socket) {
    if (shared->connections >= kMaxConnections) return;
    if (!shared->options.tls) {
      std::make_shared<Session<Plain>>(shared, nullptr, std::move(socket))->Start();
    } else if (auto context = shared->Context()) {
      std::make_shared<Session<Tls>>(shared, std::move(context), std::move(socket))->Start();
    }
  }

  const std::shared_ptr<Shared> shared;
  net::io_context io;
  tcp::acceptor acceptor;
  net::steady_timer retry{acceptor.get_executor()};
  std::uint16_t port = 0;
  std::vector<std::thread> threads;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

std::uint16_t Server::port() const {
  return impl_->port;
}

Result<std::unique_ptr<Server>> Server::Listen(const std::string& host, std::uint16_t port,
                                               Handler handler, const ServerOptions& options) {
  auto impl = std::make_unique<Impl>(std::move(handler), options);
  if (const Status opened = impl->Open(host, port); !opened.ok()) {
    return Unavailable("listen on " + host + ":" + std::to_string(port) + ": " + opened.message() +
                       " (is the port taken?)");
  }
  impl->Start();
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

}  // namespace rouse::http
