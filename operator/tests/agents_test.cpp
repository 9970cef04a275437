// What agents are told goes over connections that are there already.

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <mutex>
#include <thread>
#include <vector>

#include "common/tests/eventually.h"
#include "common/tests/tls_authority.h"
#include "operator/actuate/agents.h"

namespace rouse::actuate {
namespace {

using namespace std::chrono_literals;
using rouse::test::Eventually;
using tls::testing::Authority;
using tls::testing::Must;

/// Passes connections on to a port, counts them, and cuts them off when told.
class CountingDoor {
 public:
  explicit CountingDoor(std::uint16_t behind) : behind_(Address(behind)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Address(0);
    socklen_t size = sizeof address;
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    REQUIRE(::bind(listener_, generic, sizeof address) == 0);
    REQUIRE(::listen(listener_, 100) == 0);
    REQUIRE(::getsockname(listener_, generic, &size) == 0);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~CountingDoor() {
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    Cut();
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
    for (const int fd : fds_) ::close(fd);
  }
  void Cut() {
    const std::lock_guard lock(mutex_);
    for (const int fd : fds_) ::shutdown(fd, SHUT_RDWR);
  }
  std::string url() const { return "https://127.0.0.1:" + std::to_string(port_); }

  std::atomic<int> count{0};

 private:
  static sockaddr_in Address(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
  }

  void Accept() {
    for (;;) {
      const int outside = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (outside < 0) return;
      ++count;
      const int inside = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      static_cast<void>(
          ::connect(inside, reinterpret_cast<const sockaddr*>(&behind_), sizeof behind_));
      const std::lock_guard lock(mutex_);
      fds_.insert(fds_.end(), {outside, inside});
      threads_.emplace_back([outside, inside] { Pass(outside, inside); });
    }
  }

  static void Pass(int a, int b) {
    pollfd both[] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
    char bytes[4096];
    while (::poll(both, 2, -1) > 0) {
      for (int from = 0; from < 2; ++from) {
        if (both[from].revents == 0) continue;
        const ssize_t got = ::recv(both[from].fd, bytes, sizeof bytes, 0);
        if (got <= 0 ||
            ::send(both[1 - from].fd, bytes, static_cast<std::size_t>(got), MSG_NOSIGNAL) != got) {
          ::shutdown(a, SHUT_RDWR);
          ::shutdown(b, SHUT_RDWR);
          return;
        }
      }
    }
  }

  const sockaddr_in behind_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::thread acceptor_;
  std::mutex mutex_;
  std::vector<int> fds_;              // Guarded by mutex_.
  std::vector<std::thread> threads_;  // Guarded by mutex_.
};

struct World {
  World()
      : agent(Must(http::Server::Listen(
            "127.0.0.1", 0,
            [](const http::Request&) {
              return http::Response{
                  .status = 202,
                  .headers = {},
                  .body = json::Dump(ToJson(RoleResponse{.state = AgentState::kWaking}))};
            },
            {.tls = http::ServerTls{.credentials = credentials,
                                    .client = tls::ClientCertificate::kRequired}}))),
        door(agent->port()),
        agents(authority.StoreFor(tls::Operator()), 5s) {}

  AgentName Name(const std::string& uid = "u-1") const {
    return {.ns = "ns", .pod = "p-0", .uid = uid, .address = door.url()};
  }

  /// Others for the key that connections are kept by, and the same to the agent.
  AgentName Name(int i, const std::string& url) const {
    AgentName name = Name();
    name.address = url + "/" + std::to_string(i);
    return name;
  }
  std::string url() const { return "https://127.0.0.1:" + std::to_string(agent->port()); }

  const Authority authority;
  const std::shared_ptr<tls::CredentialStore> credentials =
      authority.StoreFor(tls::Agent("ns", "p-0", "u-1"));
  const std::unique_ptr<http::Server> agent;
  CountingDoor door;
  HttpAgents agents;
};

}  // namespace

TEST_CASE("who is kept connected is told over the connection that is there") {
  World world;
  world.agents.KeepConnected("ns/p", {world.Name()});
  REQUIRE(Eventually([&] { return world.door.count == 1; }));
  std::this_thread::sleep_for(200ms);  // For the handshake.
  CHECK(Must(world.agents.TellRole(world.Name(), {.role = Role::kActive})).state ==
        AgentState::kWaking);
  CHECK(world.door.count == 1);
  // Said again, or of nobody: nothing is to be done.
  world.agents.KeepConnected("ns/p", {world.Name()});
  world.agents.KeepConnected("ns/other", {});
  CHECK(Must(world.agents.TellRole(world.Name(), {.role = Role::kActive})).state ==
        AgentState::kWaking);
  CHECK(world.door.count == 1);
}

TEST_CASE(
    "a connection that the agent has closed is opened anew, at the latest when it is needed") {
  World world;
  world.agents.KeepConnected("ns/p", {world.Name()});
  REQUIRE(Eventually([&] { return world.door.count == 1; }));
  std::this_thread::sleep_for(200ms);
  world.door.Cut();
  SECTION("when others are to be kept, too") {
    world.agents.KeepConnected("ns/q", {world.Name("u-2")});  // Not who it is: not kept.
    REQUIRE(Eventually([&] { return world.door.count == 3; }));
  }
  SECTION("when it is told") {
    CHECK(world.agents.TellRole(world.Name(), {.role = Role::kActive}).ok());
    CHECK(world.door.count == 2);
  }
}

TEST_CASE("a hundred guards of one service are kept connected beside those of many others") {
  World world;
  int made = 0;
  const auto some = [&](int count) {
    std::vector<AgentName> names;
    for (int i = 0; i < count; ++i) names.push_back(world.Name(++made, world.url()));
    return names;
  };
  for (int i = 0; i < 25; ++i) world.agents.KeepConnected("ns/p" + std::to_string(i), some(8));
  std::vector<AgentName> hundred = some(99);
  hundred.push_back(world.Name(++made, world.door.url()));  // The last of all.
  world.agents.KeepConnected("ns/wide", hundred);
  REQUIRE(Eventually([&] { return world.door.count == 1; }));
  std::this_thread::sleep_for(1s);                                        // For the handshake.
  world.credentials->Set({.trusted = "", .certificate = "", .key = ""});  // No new one can be made.
  for (const AgentName& agent : hundred) {
    INFO(agent.address);
    CHECK(world.agents.TellRole(agent, {.role = Role::kActive}).ok());
  }
}

TEST_CASE("agents that nobody can reach hold up nobody") {
  World world;
  AgentName nobody = world.Name();
  nobody.address = "https://127.0.0.1:1";
  std::vector<AgentName> many(500, nobody);
  for (std::size_t i = 0; i < many.size(); ++i) many[i].uid = std::to_string(i);
  world.agents.KeepConnected("ns/a", std::move(many));
  world.agents.KeepConnected("ns/z", {world.Name()});  // Its first is before the second of others.
  CHECK(Eventually([&] { return world.door.count == 1; }));
}

}  // namespace rouse::actuate
