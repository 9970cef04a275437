// An HTTP/1.1 server over raw sockets, for tests only: it does what a correct server cannot be made
// to do, such as cutting a stream in the middle of a line or falling silent for ever.

#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>

namespace rouse::kube {

struct FakeRequest {
  std::string method;
  std::string target;                          ///< Path and query as sent.
  std::map<std::string, std::string> headers;  ///< Names in lower case.
  std::string body;

  std::string path() const { return target.substr(0, target.find('?')); }
  /// A query parameter, still percent-encoded; empty when missing.
  std::string query(const std::string& name) const {
    auto at = target.find('?');
    while (at != std::string::npos) {
      const auto begin = at + 1;
      at = target.find('&', begin);
      const std::string pair = target.substr(begin, at == std::string::npos ? at : at - begin);
      if (pair.starts_with(name + "=")) return pair.substr(name.size() + 1);
    }
    return {};
  }
};

/// One connection, as its handler sees it.
class FakeConnection {
 public:
  FakeConnection(int fd, const std::atomic<bool>& stopping) : fd_(fd), stopping_(stopping) {}

  /// False once the peer is gone.
  bool Send(const std::string& bytes) {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const auto sent = ::send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      done += static_cast<std::size_t>(sent);
    }
    return true;
  }
  bool Answer(int status, const std::string& body, const std::string& headers = "") {
    return Send("HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: application/json\r\n" +
                headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  bool Answer(int status, const nlohmann::json& body, const std::string& headers = "") {
    return Answer(status, body.dump(), headers);
  }
  /// A Kubernetes Status object as the body.
  bool Refuse(int status, const std::string& reason, const std::string& message,
              const std::string& headers = "") {
    return Answer(status,
                  nlohmann::json{{"kind", "Status"},
                                 {"apiVersion", "v1"},
                                 {"status", "Failure"},
                                 {"reason", reason},
                                 {"message", message},
                                 {"code", status}},
                  headers);
  }
  /// Begins a chunked stream; then Chunk, and at last EndChunks.
  bool BeginStream() {
    return Send(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: "
        "chunked\r\n\r\n");
  }
  bool Chunk(const std::string& bytes) {
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    return Send(size + bytes + "\r\n");
  }
  bool Line(const nlohmann::json& event) { return Chunk(event.dump() + "\n"); }
  bool EndChunks() { return Send("0\r\n\r\n"); }
  /// Waits until the peer closes, `limit` passes, or the server is destroyed.
  void HoldOpen(std::chrono::milliseconds limit) {
    const auto until = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < until && !stopping_ && !PeerGone(10)) {
    }
  }
  /// Drops the connection after the handler returns.
  void Drop() { drop_ = true; }
  bool dropped() const { return drop_; }
  bool PeerGone(int wait_ms) {
    pollfd poll_fd{fd_, POLLIN, 0};
    if (::poll(&poll_fd, 1, wait_ms) <= 0) return false;
    char byte = 0;
    return ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  }
  bool stopping() const { return stopping_; }

 private:
  int fd_;
  const std::atomic<bool>& stopping_;
  bool drop_ = false;
};

class FakeHttpServer {
 public:
  using Handler = std::function<void(FakeConnection&, const FakeRequest&)>;

  explicit FakeHttpServer(Handler handler) : handler_(std::move(handler)) { Listen(0); }
  ~FakeHttpServer() { Stop(); }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int connections() const { return connections_; }

  /// As when the process is killed: nothing answers at the port any more, open connections break.
  void Stop() {
    if (listener_ < 0) return;
    stopping_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    ::close(listener_);
    listener_ = -1;
    {
      std::lock_guard lock(mutex_);
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    stopping_ = false;
  }
  /// Listens again at the same port.
  void Restart() { Listen(port_); }

 private:
  void Listen(int port) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    socklen_t length = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener_, 64) != 0) {
      throw std::runtime_error("fake server cannot listen");
    }
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] {
      while (true) {
        const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) return;
        ++connections_;
        std::lock_guard lock(mutex_);
        open_.push_back(fd);
        threads_.emplace_back([this, fd] { Serve(fd); });
      }
    });
  }

  void Serve(int fd) {
    FakeConnection connection(fd, stopping_);
    std::string buffer;
    FakeRequest request;
    while (!stopping_ && ReadRequest(fd, &buffer, &request)) {
      handler_(connection, request);
      if (connection.dropped()) break;
    }
    std::lock_guard lock(mutex_);
    open_.remove(fd);
    ::close(fd);
  }

  static bool ReadMore(int fd, std::string* buffer) {
    char bytes[16384];
    const auto got = ::recv(fd, bytes, sizeof bytes, 0);
    if (got <= 0) return false;
    buffer->append(bytes, static_cast<std::size_t>(got));
    return true;
  }

  static bool ReadRequest(int fd, std::string* buffer, FakeRequest* request) {
    std::size_t end;
    while ((end = buffer->find("\r\n\r\n")) == std::string::npos) {
      if (!ReadMore(fd, buffer)) return false;
    }
    *request = {};
    std::size_t at = buffer->find("\r\n");
    const std::string first = buffer->substr(0, at);
    const auto space = first.find(' ');
    request->method = first.substr(0, space);
    request->target = first.substr(space + 1, first.rfind(' ') - space - 1);
    while (at < end) {
      at += 2;
      const auto next = buffer->find("\r\n", at);
      const std::string line = buffer->substr(at, next - at);
      const auto colon = line.find(':');
      std::string name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      request->headers[name] =
          line.substr(std::min(line.size(), line.find_first_not_of(' ', colon + 1)));
      at = next;
    }
    const auto length = request->headers.find("content-length");
    const std::size_t body = length == request->headers.end() ? 0 : std::stoul(length->second);
    while (buffer->size() < end + 4 + body) {
      if (!ReadMore(fd, buffer)) return false;
    }
    request->body = buffer->substr(end + 4, body);
    buffer->erase(0, end + 4 + body);
    return true;
  }

  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  std::thread acceptor_;
  std::mutex mutex_;
  std::list<int> open_;             ///< Guarded by mutex_.
  std::list<std::thread> threads_;  ///< Guarded by mutex_ while accepting.
};

}  // namespace rouse::kube
