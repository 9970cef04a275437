#include "common/http.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <string>
#include <thread>
#include <vector>

namespace rouse::http {
namespace {

// A server that sends fixed bytes to each connection and closes it: what a real server cannot be
// made to do on demand. After an answer that ends with <hold> it is silent, after one that ends
// with <trickle> it sends a byte every 50 ms, and leaves the connection to its peer to close.
class FakeRawServer {
 public:
  explicit FakeRawServer(std::vector<std::string> answers) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    REQUIRE(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    REQUIRE(::listen(fd_, 8) == 0);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, answers = std::move(answers)] {
      for (const std::string& answer : answers) {
        const int peer = ::accept(fd_, nullptr, nullptr);
        if (peer < 0) return;
        char buffer[4096];
        if (::recv(peer, buffer, sizeof(buffer), 0) < 0) return;
        const bool trickles = answer.ends_with("<trickle>");
        const std::string sent = trickles ? answer.substr(0, answer.size() - 9) : answer;
        if (::send(peer, sent.data(), sent.size(), MSG_NOSIGNAL) < 0) return;
        if (trickles) Trickle(peer);
        if (answer.ends_with("<hold>")) Hold(peer);
        ::close(peer);
      }
    });
  }
  ~FakeRawServer() {
    stopping_ = true;
    ::shutdown(fd_, SHUT_RDWR);
    ::close(fd_);
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

 private:
  // Silent until the peer leaves or the test is over; longer than anything a test waits for.
  void Hold(int peer) const {
    for (int tenths = 0; tenths < 400 && !stopping_; ++tenths) {
      pollfd poll_fd{peer, POLLIN, 0};
      char byte = 0;
      if (::poll(&poll_fd, 1, 100) > 0 && ::recv(peer, &byte, 1, MSG_DONTWAIT) <= 0) return;
    }
  }

  void Trickle(int peer) const {
    while (!stopping_ && ::send(peer, "x", 1, MSG_NOSIGNAL) == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  std::atomic<bool> stopping_ = false;
  int fd_ = -1;
  std::uint16_t port_ = 0;
  std::thread thread_;
};

constexpr const char* kChunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

std::unique_ptr<Client> ClientFor(const std::string& url) {
  auto client = Client::Create(url);
  REQUIRE(client.ok());
  return *std::move(client);
}

TEST_CASE("a request reaches the handler whole and the answer comes back whole") {
  auto server = Server::Listen("127.0.0.1", 0, [](const Request& in) {
    return Response{.status = 201,
                    .headers = {{"X-Seen", in.headers.at("x-mine")}},
                    .body = in.method + " " + in.target + " " + in.body};
  });
  REQUIRE(server.ok());
  auto client = ClientFor("http://127.0.0.1:" + std::to_string((*server)->port()));
  const auto answer = client->Send({.method = "PATCH",
                                    .target = "/a%20b?c=%2Fd",
                                    .headers = {{"X-Mine", "7"}},
                                    .body = "hello"});
  REQUIRE(answer.ok());
  CHECK(answer->status == 201);
  CHECK(answer->headers.at("x-seen") == "7");
  CHECK(answer->body == "PATCH /a%20b?c=%2Fd hello");
}

TEST_CASE("bodies over the bound are refused on both sides") {
  auto server = Server::Listen(
      "127.0.0.1", 0, [](const Request&) { return Response{.body = std::string(5000, 'x')}; },
      {.max_body_bytes = 1000});
  REQUIRE(server.ok());
  auto client = ClientFor("http://127.0.0.1:" + std::to_string((*server)->port()));
  const auto refused =
      client->Send({.method = "POST", .target = "/", .body = std::string(2000, 'y')});
  REQUIRE(refused.ok());
  CHECK(refused->status == 413);
  CHECK(client->Send({.target = "/"}, 4000).status().code() == StatusCode::kResourceExhausted);
  CHECK(client->Send({.target = "/"}, 6000)->body.size() == 5000);
}

TEST_CASE("a handler that throws costs only its own request") {
  auto server = Server::Listen("127.0.0.1", 0, [](const Request& in) -> Response {
    if (in.target == "/bad") throw std::runtime_error("boom");
    return {};
  });
  REQUIRE(server.ok());
  auto client = ClientFor("http://127.0.0.1:" + std::to_string((*server)->port()));
  CHECK(client->Send({.target = "/bad"})->status == 500);
  CHECK(client->Send({.target = "/good"})->status == 200);
}

TEST_CASE("clients that never finish their body do not keep others from being answered") {
  auto server =
      Server::Listen("127.0.0.1", 0, [](const Request& in) { return Response{.body = in.body}; });
  REQUIRE(server.ok());
  std::vector<int> stalled;
  for (int i = 0; i < 60; ++i) {  // More than there are threads.
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((*server)->port());
    REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    const std::string start = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this";
    REQUIRE(::send(fd, start.data(), start.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(start.size()));
    stalled.push_back(fd);
  }
  auto client = ClientFor("http://127.0.0.1:" + std::to_string((*server)->port()));
  const auto answer =
      client->Send({.method = "POST", .body = "whole", .timeout = std::chrono::seconds(10)});
  for (const int fd : stalled) ::close(fd);
  REQUIRE(answer.ok());
  CHECK(answer->body == "whole");
}

TEST_CASE("a body without a length is taken up to the bound, and no further") {
  auto server =
      Server::Listen("127.0.0.1", 0, [](const Request& in) { return Response{.body = in.body}; },
                     {.max_body_bytes = 10});
  REQUIRE(server.ok());
  for (const auto& [body, expected] : std::vector<std::pair<std::string, std::string>>{
           {"a\r\n0123456789\r\n", "200 OK"}, {"b\r\n0123456789x\r\n", "413"}}) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((*server)->port());
    REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    const std::string request =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + "0\r\n\r\n";
    REQUIRE(::send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(request.size()));
    std::string answer(1024, '\0');
    const ssize_t got = ::recv(fd, answer.data(), answer.size(), 0);
    ::close(fd);
    INFO(answer);
    REQUIRE(got > 0);
    CHECK(answer.find(expected) != std::string::npos);
  }
}

TEST_CASE("nobody listening is Unavailable, nobody answering is DeadlineExceeded") {
  CHECK(ClientFor("http://127.0.0.1:1")->Send({}).status().code() == StatusCode::kUnavailable);
  FakeRawServer silent({"<hold>"});
  const auto answer = ClientFor(silent.url())->Send({.timeout = std::chrono::milliseconds(1000)});
  CHECK(answer.status().code() == StatusCode::kDeadlineExceeded);
}

TEST_CASE("an answer that trickles in ends at the deadline, its headers or its body") {
  const std::string start =
      GENERATE("HTTP/1.1 200 OK\r\nX-Long: ", "HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n");
  FakeRawServer server({start + "<trickle>"});
  const auto client = ClientFor(server.url());
  const auto began = std::chrono::steady_clock::now();
  const auto answer = client->Send(
      {.timeout = std::chrono::seconds(60), .deadline = std::chrono::milliseconds(500)});
  CHECK(answer.status().code() == StatusCode::kDeadlineExceeded);
  CHECK(answer.status().message().find("within 500 ms") != std::string::npos);
  // All of the body would have come in 20 s.
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(15));
}

TEST_CASE("a request whose connection was dropped before the answer is sent once more") {
  FakeRawServer server({"", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"});
  const auto answer = ClientFor(server.url())->Send({.method = "POST", .body = "{}"});
  REQUIRE(answer.ok());
  CHECK(answer->body == "ok");
}

TEST_CASE("a stream whose connection was dropped before the answer is asked for once more") {
  FakeRawServer server({"", std::string(kChunked) + "4\r\none\n\r\n0\r\n\r\n"});
  std::vector<std::string> lines;
  const Status status = ClientFor(server.url())
                            ->Stream(
                                {.method = "POST", .body = "{}"}, CancelSource(),
                                [&](std::string_view line) {
                                  lines.emplace_back(line);
                                  return Status();
                                },
                                nullptr);
  CHECK(status.ToString() == "Ok");
  CHECK(lines == std::vector<std::string>{"one"});
}

TEST_CASE("a stream is delivered line by line across chunk borders") {
  FakeRawServer server(
      {std::string(kChunked) + "3\r\none\r\n5\r\n\ntwo\n\r\n6\r\nthree\n\r\n0\r\n\r\n"});
  std::vector<std::string> lines;
  const Status status = ClientFor(server.url())
                            ->Stream(
                                {}, CancelSource(),
                                [&](std::string_view line) {
                                  lines.emplace_back(line);
                                  return Status();
                                },
                                nullptr);
  CHECK(status.ToString() == "Ok");
  CHECK(lines == std::vector<std::string>{"one", "two", "three"});
}

TEST_CASE("a stream that breaks, also in the middle of a line, is Unavailable after what arrived") {
  for (const char* tail : {"4\r\none\n\r\n", "6\r\none\ntw\r\n0\r\n\r\n"}) {
    FakeRawServer server({std::string(kChunked) + tail});
    std::vector<std::string> lines;
    const Status status = ClientFor(server.url())
                              ->Stream(
                                  {}, CancelSource(),
                                  [&](std::string_view line) {
                                    lines.emplace_back(line);
                                    return Status();
                                  },
                                  nullptr);
    CHECK(status.code() == StatusCode::kUnavailable);
    CHECK(lines == std::vector<std::string>{"one"});
  }
}

TEST_CASE("an error status of a stream comes as a response, not as lines") {
  FakeRawServer server({"HTTP/1.1 410 Gone\r\nContent-Length: 9\r\n\r\n{\"a\": 1}\n"});
  Response error;
  int lines = 0;
  const Status status = ClientFor(server.url())
                            ->Stream(
                                {}, CancelSource(),
                                [&](std::string_view) {
                                  ++lines;
                                  return Status();
                                },
                                &error);
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  CHECK(error.status == 410);
  CHECK(error.body == "{\"a\": 1}\n");
  CHECK(lines == 0);
}

TEST_CASE("the consumer's own error ends the stream and comes back") {
  FakeRawServer server({std::string(kChunked) + "4\r\none\n\r\n4\r\ntwo\n\r\n0\r\n\r\n"});
  const Status status =
      ClientFor(server.url())
          ->Stream(
              {}, CancelSource(), [](std::string_view) { return DataLoss("nonsense"); }, nullptr);
  CHECK(status.code() == StatusCode::kDataLoss);
}

TEST_CASE("a stream that times out while its consumer is at work returns after the consumer") {
  FakeRawServer server({std::string(kChunked) + "4\r\none\n\r\n4\r\ntwo\n\r\n<hold>"});
  std::atomic<bool> inside = false;
  std::atomic<int> calls = 0;
  const Status status = ClientFor(server.url())
                            ->Stream(
                                {.timeout = std::chrono::milliseconds(3000)}, CancelSource(),
                                [&](std::string_view) {
                                  inside = true;
                                  std::this_thread::sleep_for(std::chrono::milliseconds(4000));
                                  ++calls;
                                  inside = false;
                                  return Status();
                                },
                                nullptr);
  CHECK(status.code() == StatusCode::kDeadlineExceeded);
  CHECK_FALSE(inside);
  const int before = calls;
  CHECK(before >= 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(5000));  // Longer than one call takes.
  CHECK(calls == before);
}

TEST_CASE("a line over the bound ends the stream") {
  FakeRawServer server({std::string(kChunked) + "8\r\naaaaaaaa\r\n0\r\n\r\n"});
  const Status status =
      ClientFor(server.url())
          ->Stream(
              {}, CancelSource(), [](std::string_view) { return Status(); }, nullptr, 4);
  CHECK(status.code() == StatusCode::kResourceExhausted);
}

TEST_CASE("a silent stream can be cancelled from another thread") {
  FakeRawServer server({std::string(kChunked) + "<hold>"});
  CancelSource cancel;
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    cancel.Cancel();
  });
  const auto began = std::chrono::steady_clock::now();
  const Status status = ClientFor(server.url())
                            ->Stream(
                                {}, cancel, [](std::string_view) { return Status(); }, nullptr);
  canceller.join();
  CHECK(status.code() == StatusCode::kCancelled);
  // Neither the server's end of the silence nor the stream's own timeout has come.
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(20));
}

TEST_CASE("an error answer reads back as the status it was made from") {
  const Status status = FailedPrecondition("dtype differs");
  const Status back = ToStatus(ErrorResponse(status), "open");
  CHECK(back == FailedPrecondition("open: HTTP 412: dtype differs"));
  CHECK(ToStatus(Response{.status = 503, .body = "<html>"}, "x").code() ==
        StatusCode::kUnavailable);
  // Nobody here answers so: it is not what was asked for, whatever the number means elsewhere.
  CHECK(ToStatus(Response{.status = 204}, "x").code() == StatusCode::kUnavailable);
  CHECK(UrlEncode("a/b c=é") == "a%2Fb%20c%3D%C3%A9");
}

}  // namespace
}  // namespace rouse::http
