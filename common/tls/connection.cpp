#include "common/tls/connection.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>

namespace rouse::tls {
namespace {

Status Failed(int error) {
  return Unavailable(std::generic_category().message(error));
}

// Until the socket can be read from or written to, or has failed.
Status WaitFor(int socket, short events, Connection::Deadline until) {
  constexpr std::chrono::milliseconds kLongest = std::chrono::hours(1);
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) return DeadlineExceeded("no answer in time");
    pollfd waiting{.fd = socket, .events = events, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(std::min(left, kLongest).count()));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return Failed(errno);
  }
}

Status ConnectTo(int socket, const addrinfo& address, Connection::Deadline until) {
  if (::connect(socket, address.ai_addr, address.ai_addrlen) == 0) return {};
  if (errno != EINPROGRESS) return Failed(errno);
  ROUSE_RETURN_IF_ERROR(WaitFor(socket, POLLOUT, until));
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  return error == 0 ? Status() : Failed(error);
}

// A socket that is connected to the first of the server's addresses that answers.
Result<int> ConnectTo(const Server& server, Connection::Deadline until) {
  addrinfo wanted{};
  wanted.ai_flags = AI_NUMERICSERV;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int found =
      ::getaddrinfo(server.host.c_str(), std::to_string(server.port).c_str(), &wanted, &list);
  if (found != 0) return Unavailable("find " + server.host + ": " + ::gai_strerror(found));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(list, &::freeaddrinfo);
  Status connected;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    const int socket =
        ::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, each->ai_protocol);
    if (socket < 0) return Failed(errno).WithContext("connect");
    connected = ConnectTo(socket, *each, until);
    if (connected.ok()) {
      const int yes = 1;
      ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      return socket;
    }
    ::close(socket);
  }
  return connected.WithContext("connect");
}

}  // namespace

// OpenSSL's own kind of BIO for sockets lets a closed one end the process by SIGPIPE. Nothing comes
// through this one once it is time: a server that never stops sending is waited for, too.
int Connection::Send(BIO* bio, const char* bytes, int size) {
  const auto* const self = static_cast<const Connection*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  errno = EAGAIN;
  const ssize_t sent =
      std::chrono::steady_clock::now() < self->until_
          ? ::send(self->socket_, bytes, static_cast<std::size_t>(size), MSG_NOSIGNAL)
          : -1;
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int Connection::Receive(BIO* bio, char* bytes, int size) {
  const auto* const self = static_cast<const Connection*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  errno = EAGAIN;
  const ssize_t got = std::chrono::steady_clock::now() < self->until_
                          ? ::recv(self->socket_, bytes, static_cast<std::size_t>(size), 0)
                          : -1;
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  if (got == 0) errno = 0;
  return static_cast<int>(got);
}

BIO* Connection::MakeBio(Connection* connection) {
  static const BIO_METHOD* const kind = [] {
    BIO_METHOD* const made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
    if (made == nullptr) throw std::bad_alloc();
    BIO_meth_set_write(made, &Send);
    BIO_meth_set_read(made, &Receive);
    BIO_meth_set_ctrl(made, [](BIO*, int command, long, void*) -> long {
      return command == BIO_CTRL_FLUSH ? 1 : 0;  // Nothing is held back.
    });
    return made;
  }();
  BIO* const bio = BIO_new(kind);
  if (bio == nullptr) throw std::bad_alloc();
  BIO_set_data(bio, connection);
  BIO_set_init(bio, 1);
  return bio;
}

Connection::Connection(int socket, ClientContext context)
    : socket_(socket), context_(std::move(context)), tls_(SSL_new(context_.get()), &SSL_free) {
  if (tls_ == nullptr) throw std::bad_alloc();
  BIO* const bio = MakeBio(this);
  SSL_set_bio(tls_.get(), bio, bio);  // Owns it from here on.
}

Connection::~Connection() {
  ::close(socket_);
}

// `step` is a call of OpenSSL: as often as it waits for the other end.
template <typename Step>
Status Connection::Repeat(const Step& step, Deadline until) {
  until_ = until;
  for (;;) {
    ERR_clear_error();
    const int result = step();
    if (result == 1) return {};
    switch (SSL_get_error(tls_.get(), result)) {
      case SSL_ERROR_WANT_READ:
        ROUSE_RETURN_IF_ERROR(WaitFor(socket_, POLLIN, until));
        break;
      case SSL_ERROR_WANT_WRITE:
        ROUSE_RETURN_IF_ERROR(WaitFor(socket_, POLLOUT, until));
        break;
      case SSL_ERROR_ZERO_RETURN:
        return Unavailable("end of stream");
      case SSL_ERROR_SYSCALL:
        return errno == 0 ? Unavailable("the connection was closed") : Failed(errno);
      default: {
        const char* const reason = ERR_reason_error_string(ERR_get_error());
        return Unavailable(reason == nullptr ? "OpenSSL gives no reason" : reason);
      }
    }
  }
}

Result<std::unique_ptr<Connection>> Connection::Open(const Server& server, ClientContext context,
                                                     Deadline until,
                                                     std::chrono::milliseconds silence) {
  const auto soon = [&] { return std::min(until, std::chrono::steady_clock::now() + silence); };
  ROUSE_ASSIGN_OR_RETURN(const int socket, ConnectTo(server, soon()));
  std::unique_ptr<Connection> made(new Connection(socket, std::move(context)));
  SSL* const tls = made->tls_.get();
  ROUSE_RETURN_IF_ERROR(Expect(tls, server.identity));
  const Status done = made->Repeat([&] { return SSL_connect(tls); }, soon());
  if (done.ok()) return made;
  const std::string why = WhyNotBelieved(tls, server.identity);
  return (why.empty() ? done : Unavailable(why)).WithContext("TLS handshake");
}

Status Connection::Write(std::string_view bytes, Deadline until) {
  std::size_t written = 0;
  return Repeat([&] { return SSL_write_ex(tls_.get(), bytes.data(), bytes.size(), &written); },
                until);
}

Result<std::size_t> Connection::Read(void* into, std::size_t size, Deadline until) {
  std::size_t got = 0;
  ROUSE_RETURN_IF_ERROR(Repeat([&] { return SSL_read_ex(tls_.get(), into, size, &got); }, until));
  return got;
}

bool Connection::IsOpen() const {
  pollfd socket{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&socket, 1, 0) == 0;
}

}  // namespace rouse::tls
