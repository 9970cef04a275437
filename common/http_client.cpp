#include <cpprest/http_client.h>
#include <openssl/ssl.h>
#include <pplx/threadpool.h>
#include <boost/asio/ssl.hpp>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>

#include "common/http.h"
#include "common/http_peer_client.h"
#include "common/line_buffer.h"

namespace rouse::http {
namespace {

namespace wh = web::http;

using Clock = std::chrono::steady_clock;

// Ours are blocking calls: what cpprestsdk throws becomes a Status here and nowhere else.
Status ToStatusFrom(const std::exception& error, const std::string& what, bool tls) {
  if (const auto* http = dynamic_cast<const wh::http_exception*>(&error)) {
    const std::error_code& code = http->error_code();
    if (code == std::errc::operation_canceled) {
      return Status(StatusCode::kCancelled, what + ": cancelled");
    }
    if (code == std::errc::timed_out || std::strstr(error.what(), "timed out") != nullptr ||
        std::strstr(error.what(), "Timed out") != nullptr) {
      return DeadlineExceeded(what + ": " + error.what());
    }
    std::string hint;
    if (tls && std::strstr(error.what(), "SSL handshake") != nullptr) {
      hint = " (check the CA file and that the certificate names this host)";
    }
    return Unavailable(what + ": " + error.what() + hint);
  }
  if (dynamic_cast<const pplx::task_canceled*>(&error) != nullptr) {
    return Status(StatusCode::kCancelled, what + ": cancelled");
  }
  return Unavailable(what + ": " + error.what());
}

void SetUpTls(boost::asio::ssl::context& context, const TlsOptions& tls) {
  context.set_options(boost::asio::ssl::context::default_workarounds |
                      boost::asio::ssl::context::no_sslv2 | boost::asio::ssl::context::no_sslv3 |
                      boost::asio::ssl::context::no_tlsv1 | boost::asio::ssl::context::no_tlsv1_1);
  if (!tls.ca_file.empty()) {
    // The library has the context trust the system's authorities before it is ours to set up.
    X509_STORE* const none = ::X509_STORE_new();
    if (none == nullptr) throw std::bad_alloc();
    ::SSL_CTX_set_cert_store(context.native_handle(), none);  // Takes it.
    context.load_verify_file(tls.ca_file);
  }
  if (!tls.certificate_file.empty()) {
    context.use_certificate_chain_file(tls.certificate_file);
    context.use_private_key_file(tls.key_file, boost::asio::ssl::context::pem);
  }
}

wh::http_request ToCpprest(const Request& request) {
  wh::http_request out(request.method);
  out.set_request_uri(web::uri(request.target));
  for (const auto& [name, value] : request.headers) out.headers().add(name, value);
  if (!request.body.empty()) {
    const auto type = request.headers.find("Content-Type");
    out.set_body(request.body, type == request.headers.end() ? "application/json" : type->second);
  }
  return out;
}

Headers FromCpprest(const wh::http_headers& headers) {
  Headers out;
  for (const auto& [name, value] : headers) out[name] = value;
  return out;
}

// A body sink that refuses to grow over its bound.
class BoundedBody {
 public:
  explicit BoundedBody(std::size_t max) : max_(max) {}
  void Append(std::string_view bytes) {
    if (body_.size() + bytes.size() > max_) {
      throw StreamError{Status(StatusCode::kResourceExhausted,
                               "body is over the limit of " + std::to_string(max_) + " bytes")};
    }
    body_.append(bytes);
  }
  std::string Take() { return std::move(body_); }

 private:
  std::size_t max_;
  std::string body_;
};

// How far one exchange has come. Its task may end after we have given it up.
struct Exchange {
  explicit Exchange(std::size_t max_body_bytes) : body(max_body_bytes) {}

  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;                 // Guarded by mutex.
  std::atomic<bool> answered{false};  // The headers are there.
  BoundedBody body;                   // The library's until `ended`.
};

// Whether `exchange`, which `task` is, ends by then.
template <typename T>
bool EndsBy(Clock::time_point until, const std::shared_ptr<Exchange>& exchange,
            const pplx::task<T>& task) {
  task.then([exchange](const pplx::task<T>& ended) {
    try {
      ended.wait();
    } catch (...) {  // The task's own get() tells.
    }
    const std::lock_guard lock(exchange->mutex);
    exchange->ended = true;
    exchange->changed.notify_all();
  });
  std::unique_lock lock(exchange->mutex);
  return exchange->changed.wait_until(lock, until, [&] { return exchange->ended; });
}

}  // namespace

struct CancelSource::State {
  pplx::cancellation_token_source source;
  std::atomic<bool> cancelled{false};
};

CancelSource::CancelSource() : state_(std::make_shared<State>()) {}

void CancelSource::Cancel() {
  state_->cancelled = true;
  state_->source.cancel();
}

bool CancelSource::cancelled() const {
  return state_->cancelled;
}

struct Client::Impl {
  std::string base;
  TlsOptions tls;
  bool is_tls = false;
  std::unique_ptr<PeerClient> peer;  // For one of ourselves: instead of all that follows.
  std::mutex mutex;
  // One cpprestsdk client a timeout, because it is a property of the client there. Guarded by
  // mutex.
  std::map<std::chrono::milliseconds, std::shared_ptr<wh::client::http_client>> clients;

  std::shared_ptr<wh::client::http_client> ClientFor(std::chrono::milliseconds timeout) {
    const std::lock_guard lock(mutex);
    auto& client = clients[timeout];
    if (client == nullptr) {
      wh::client::http_client_config config;
      config.set_timeout(timeout);
      if (is_tls) {
        config.set_ssl_context_callback(
            [options = tls](boost::asio::ssl::context& context) { SetUpTls(context, options); });
      }
      client = std::make_shared<wh::client::http_client>(base, config);
    }
    return client;
  }

  Result<Response> SendOnce(const Request& request, std::size_t max_body_bytes,
                            Clock::time_point until, bool* answered) {
    const std::string what = request.method + " " + base + request.target;
    const auto exchange = std::make_shared<Exchange>(max_body_bytes);
    try {
      auto client = ClientFor(request.timeout);
      auto cpprest = ToCpprest(request);
      cpprest.set_response_stream(
          MakeByteSink([exchange](std::string_view bytes) { exchange->body.Append(bytes); }));
      pplx::cancellation_token_source cancel;
      const auto task = client->request(cpprest, cancel.get_token())
                            .then([exchange](const wh::http_response& response) {
                              exchange->answered = true;
                              return response.content_ready();
                            });
      if (!EndsBy(until, exchange, task)) {
        cancel.cancel();  // Closes the connection; what still arrives belongs to `exchange`.
        *answered = exchange->answered;
        return DeadlineExceeded(what + ": not answered whole within " +
                                std::to_string(request.deadline.count()) + " ms");
      }
      *answered = exchange->answered;
      const wh::http_response response = task.get();
      return Response{.status = response.status_code(),
                      .headers = FromCpprest(response.headers()),
                      .body = exchange->body.Take()};
    } catch (const StreamError& error) {
      return error.status.WithContext(what);
    } catch (const std::exception& error) {
      return ToStatusFrom(error, what, is_tls);
    }
  }

  Status StreamOnce(const Request& request, const CancelSource& cancel,
                    const std::function<Status(std::string_view line)>& on_line,
                    Response* error_response, std::size_t max_line_bytes, bool* answered);
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::Create(const std::string& base, const TlsOptions& tls) {
  try {
    // Made here rather than by the first thread that sends: what ThreadSanitizer does not see of
    // the library's locks it need not see then, and writing and suppressing its report takes a
    // second.
    (void)pplx::get_ambient_scheduler();
    const web::uri uri(base);
    if ((uri.scheme() != "http" && uri.scheme() != "https") || uri.host().empty()) {
      return InvalidArgument("server address \"" + base +
                             "\": expected http://HOST:PORT or https://HOST:PORT");
    }
    auto impl = std::make_unique<Impl>();
    impl->base = base;
    while (impl->base.ends_with('/')) impl->base.pop_back();
    impl->tls = tls;
    impl->is_tls = uri.scheme() == "https";
    return std::unique_ptr<Client>(new Client(std::move(impl)));
  } catch (const std::exception& error) {
    return InvalidArgument("server address \"" + base + "\": " + error.what());
  }
}

Result<std::unique_ptr<Client>> Client::Create(const std::string& base, MutualTls tls) {
  const std::string refusal = "server address \"" + base + "\": expected https://HOST:PORT";
  try {
    const web::uri uri(base);
    if (uri.scheme() != "https" || uri.host().empty() || uri.port() <= 0 || uri.port() > 65'535) {
      return InvalidArgument(refusal);
    }
    std::string host = uri.host();
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    auto impl = std::make_unique<Impl>();
    impl->base = base;
    while (impl->base.ends_with('/')) impl->base.pop_back();
    std::string prefix = uri.path();
    while (prefix.ends_with('/')) prefix.pop_back();
    impl->peer =
        std::make_unique<PeerClient>(std::move(host), static_cast<std::uint16_t>(uri.port()),
                                     impl->base, std::move(prefix), std::move(tls));
    return std::unique_ptr<Client>(new Client(std::move(impl)));
  } catch (const std::exception& error) {
    return InvalidArgument(refusal + ": " + error.what());
  }
}

Result<Response> Client::Send(const Request& request, std::size_t max_body_bytes) {
  if (impl_->peer != nullptr) return impl_->peer->Send(request, max_body_bytes);
  const Clock::time_point until = Clock::now() + request.deadline;
  bool answered = false;
  auto result = impl_->SendOnce(request, max_body_bytes, until, &answered);
  if (result.ok() || answered || result.status().code() != StatusCode::kUnavailable) return result;
  return impl_->SendOnce(request, max_body_bytes, until, &answered);
}

Status Client::Connect(std::chrono::milliseconds deadline) {
  return impl_->peer == nullptr ? Status() : impl_->peer->Connect(deadline);
}

Status Client::Impl::StreamOnce(const Request& request, const CancelSource& cancel,
                                const std::function<Status(std::string_view line)>& on_line,
                                Response* error_response, std::size_t max_line_bytes,
                                bool* answered) {
  const std::string what = request.method + " " + base + request.target;
  // The body may arrive before the caller's thread has seen the status: the sink waits for it,
  // because a line of an error body is not a line of the stream.
  struct Gate {
    std::mutex mutex;
    std::condition_variable opened;
    std::optional<int> status;  // Guarded by mutex; 0 when the exchange failed.
    std::mutex consuming;       // Held while the sink works; taken before nothing else.
    bool ended = false;         // Guarded by consuming: on_line may be gone.
    std::string error_body;     // Guarded by consuming.
    Status failure;             // Guarded by consuming.
  };
  auto gate = std::make_shared<Gate>();
  // A timeout ends the exchange also while the sink is at work on a library thread: whatever way we
  // leave, the last call of on_line has returned and there is no other.
  struct AtEnd {
    Gate& gate;
    ~AtEnd() {
      const std::lock_guard lock(gate.consuming);
      gate.ended = true;
    }
  } at_end{*gate};
  const auto open = [&gate](int status) {
    const std::lock_guard lock(gate->mutex);
    if (!gate->status) gate->status = status;
    gate->opened.notify_all();
  };
  auto lines = std::make_shared<LineSplitter>(max_line_bytes);
  auto sink = MakeByteSink([gate, lines, &on_line](std::string_view bytes) {
    int status = 0;
    {
      std::unique_lock lock(gate->mutex);
      gate->opened.wait(lock, [&] { return gate->status.has_value(); });
      status = *gate->status;
    }
    const std::lock_guard consuming(gate->consuming);
    if (status == 0 || gate->ended) throw StreamError{Status(StatusCode::kCancelled, "ended")};
    if (status != 200) {
      gate->error_body.append(
          bytes.substr(0, (1u << 20) - std::min<std::size_t>(1u << 20, gate->error_body.size())));
      return;
    }
    if (Status fed = lines->Feed(bytes, on_line); !fed.ok()) {
      gate->failure = fed;
      throw StreamError{fed};
    }
  });
  try {
    auto cpprest = ToCpprest(request);
    cpprest.set_response_stream(sink);
    auto task = ClientFor(request.timeout)->request(cpprest, cancel.state()->source.get_token());
    const wh::http_response response = task.get();
    *answered = true;
    open(response.status_code());
    response.content_ready().get();
    if (response.status_code() != 200) {
      if (error_response != nullptr) {
        *error_response = {.status = response.status_code(),
                           .headers = FromCpprest(response.headers()),
                           .body = gate->error_body};
      }
      return FailedPrecondition(what + ": HTTP " + std::to_string(response.status_code()));
    }
    if (lines->mid_line()) return Unavailable(what + ": the stream ended in the middle of a line");
    return Status();
  } catch (const StreamError& error) {
    open(0);
    return error.status.WithContext(what);
  } catch (const std::exception& error) {
    open(0);
    const std::lock_guard consuming(gate->consuming);
    if (!gate->failure.ok()) return gate->failure.WithContext(what);
    if (cancel.cancelled()) return Status(StatusCode::kCancelled, what + ": cancelled");
    return ToStatusFrom(error, what, is_tls);
  }
}

Status Client::Stream(const Request& request, const CancelSource& cancel,
                      const std::function<Status(std::string_view line)>& on_line,
                      Response* error_response, std::size_t max_line_bytes) {
  if (impl_->peer != nullptr) return Internal("streams are not asked of one of ourselves");
  bool answered = false;
  const auto once = [&] {
    return impl_->StreamOnce(request, cancel, on_line, error_response, max_line_bytes, &answered);
  };
  Status status = once();
  // The library itself repeats what has no body.
  const bool dropped = !answered && status.code() == StatusCode::kUnavailable;
  if (dropped && !request.body.empty()) status = once();
  return status;
}

void SetThreads(int count) {
  crossplat::threadpool::initialize_with_threads(count);
}

}  // namespace rouse::http
