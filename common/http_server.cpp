#include <arpa/inet.h>
#include <cpprest/http_listener.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/http.h"
#include "common/log.h"

namespace rouse::http {
namespace {

namespace wh = web::http;

void Reply(const wh::http_request& request, Response response) {
  wh::http_response out(static_cast<wh::status_code>(response.status));
  const auto type = response.headers.find("Content-Type");
  out.set_body(std::move(response.body),
               type == response.headers.end() ? "text/plain; charset=utf-8" : type->second);
  for (const auto& [name, value] : response.headers) {
    if (strcasecmp(name.c_str(), "Content-Type") != 0) out.headers().add(name, value);
  }
  // The client may be gone by now; that is its own affair.
  request.reply(out).then([](pplx::task<void> sent) {
    try {
      sent.get();
    } catch (const std::exception& error) {
      log::Debug("reply not delivered", {{"error", error.what()}});
    }
  });
}

Response TooLarge(std::size_t max_body_bytes) {
  Response response = ErrorResponse(
      Status(StatusCode::kResourceExhausted,
             "request body is over the limit of " + std::to_string(max_body_bytes) + " bytes"));
  response.status = 413;
  return response;
}

Request ToRequest(const wh::http_request& request) {
  Request in;
  in.method = request.method();
  in.target = request.request_uri().resource().to_string();
  for (const auto& [name, value] : request.headers()) in.headers[name] = value;
  return in;
}

// Replies with what `handler` says; whatever is thrown on the way costs this request alone.
void Handle(const wh::http_request& request, const Handler& handler, Request in) {
  try {
    Reply(request, handler(in));
  } catch (const std::exception& error) {
    log::Error("request handler threw", {{"target", in.target}, {"error", error.what()}});
    Reply(request, ErrorResponse(Internal("the request handler failed, see the log")));
  }
}

// Reads the body without holding a thread while it arrives, so that clients that send slowly, or
// never, cannot take all threads away from the others.
void Answer(const wh::http_request& request, const std::shared_ptr<const Handler>& handler,
            std::size_t max_body_bytes) {
  const bool unknown_length = request.headers().has("Transfer-Encoding");
  const std::size_t length = request.headers().content_length();
  if (!unknown_length && length > max_body_bytes) {
    Reply(request, TooLarge(max_body_bytes));
    return;
  }
  // One byte more than is allowed tells a body that is too long from one that just fits.
  const std::size_t room = unknown_length ? max_body_bytes + 1 : length;
  if (room == 0) {
    Handle(request, *handler, ToRequest(request));
    return;
  }
  auto stream = request.body().streambuf();
  const std::shared_ptr<std::uint8_t[]> buffer(new std::uint8_t[room]);
  stream.getn(buffer.get(), room)
      .then([request, handler, max_body_bytes, unknown_length, length, stream,
             buffer](const pplx::task<std::size_t>& read) {
        std::size_t got = 0;
        try {
          got = read.get();
        } catch (const std::exception& error) {
          log::Debug("request body did not arrive", {{"error", error.what()}});
          return;
        }
        if (unknown_length ? got > max_body_bytes : got < length) {
          Reply(request, unknown_length ? TooLarge(max_body_bytes)
                                        : ErrorResponse(InvalidArgument("the body was cut short")));
          return;
        }
        Request in = ToRequest(request);
        in.body.assign(reinterpret_cast<const char*>(buffer.get()), got);
        Handle(request, *handler, std::move(in));
      });
}

// cpprestsdk cannot listen on "any port" and say which; the port is free when we look.
Result<std::uint16_t> PickPort(const std::string& host) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return FromErrno(errno, "open a socket to pick a port");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1)
    address.sin_addr.s_addr = INADDR_ANY;
  socklen_t length = sizeof(address);
  const bool bound = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  const int error = errno;
  ::close(fd);
  if (!bound) return FromErrno(error, "pick a port on " + host);
  return ntohs(address.sin_port);
}

}  // namespace

struct Server::Impl {
  std::uint16_t port = 0;
  std::unique_ptr<wh::experimental::listener::http_listener> listener;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  try {
    impl_->listener->close().wait();
  } catch (const std::exception& error) {
    log::Warning("closing the listener failed", {{"port", impl_->port}, {"error", error.what()}});
  }
}

std::uint16_t Server::port() const {
  return impl_->port;
}

Result<std::unique_ptr<Server>> Server::Listen(const std::string& host, std::uint16_t port,
                                               Handler handler, std::size_t max_body_bytes) {
  auto shared = std::make_shared<const Handler>(std::move(handler));
  std::string last_error;
  for (int attempt = 0; attempt < (port == 0 ? 5 : 1); ++attempt) {
    auto impl = std::make_unique<Impl>();
    impl->port = port;
    if (port == 0) {
      ROUSE_ASSIGN_OR_RETURN(impl->port, PickPort(host));
    }
    try {
      wh::experimental::listener::http_listener_config config;
      config.set_timeout(std::chrono::seconds(120));
      impl->listener = std::make_unique<wh::experimental::listener::http_listener>(
          web::uri("http://" + host + ":" + std::to_string(impl->port)), config);
      impl->listener->support([shared, max_body_bytes](const wh::http_request& request) {
        Answer(request, shared, max_body_bytes);
      });
      impl->listener->open().wait();
      return std::unique_ptr<Server>(new Server(std::move(impl)));
    } catch (const std::exception& error) {
      last_error = error.what();
    }
  }
  return Unavailable("listen on " + host + ":" + std::to_string(port) + ": " + last_error +
                     " (is the port taken?)");
}

}  // namespace rouse::http
