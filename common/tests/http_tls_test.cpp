// The client and the server among ourselves, over real connections.

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/http.h"
#include "common/tests/tls_authority.h"
#include "common/tls/connection.h"

namespace rouse::http {
namespace {

using namespace std::chrono_literals;
using tls::testing::Authority;
using tls::testing::Must;

const tls::Identity kPod = tls::Agent("ns", "p-0", "u-1");

/// Answers with who asked.
struct Echo {
  explicit Echo(std::shared_ptr<tls::CredentialStore> store,
                tls::ClientCertificate client = tls::ClientCertificate::kRequired)
      : credentials(std::move(store)),
        server(Must(Server::Listen(
            "127.0.0.1", 0,
            [this](const Request& request) {
              ++requests;
              return Response{.body = (request.peer ? tls::Describe(*request.peer) : "nobody") +
                                      request.body};
            },
            {.tls = ServerTls{.credentials = credentials, .client = client}}))) {}

  std::string url() const { return "https://127.0.0.1:" + std::to_string(server->port()); }

  std::atomic<int> requests{0};
  std::shared_ptr<tls::CredentialStore> credentials;
  std::unique_ptr<Server> server;
};

std::unique_ptr<Client> ClientOf(const std::string& url,
                                 std::shared_ptr<tls::CredentialStore> credentials,
                                 const tls::Identity& peer = tls::Operator()) {
  return Must(Client::Create(url, MutualTls{.credentials = std::move(credentials), .peer = peer}));
}

Result<Response> Ask(Client& client, const std::string& body = "") {
  return client.Send(
      {.method = "POST", .target = "/", .body = body, .timeout = 5s, .deadline = 5s});
}

}  // namespace

TEST_CASE("a handler is told who asks, by the certificate") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  const auto client = ClientOf(echo.url(), authority.StoreFor(kPod));
  const std::string large(300'000, 'x');
  CHECK(Must(Ask(*client, large)).body == "the agent of pod ns/p-0" + large);
  CHECK(Must(Ask(*client)).body == "the agent of pod ns/p-0");
}

TEST_CASE("who shows no certificate is told apart where that is allowed, and else not answered") {
  const Authority authority;
  auto nobody = std::make_shared<tls::CredentialStore>();
  nobody->Set({.trusted = authority.pem(), .certificate = "", .key = ""});
  Echo open(authority.StoreFor(tls::Operator()), tls::ClientCertificate::kOptional);
  CHECK(Must(Ask(*ClientOf(open.url(), nobody))).body == "nobody");
  Echo closed(authority.StoreFor(tls::Operator()));
  CHECK(Ask(*ClientOf(closed.url(), nobody)).status().code() == StatusCode::kUnavailable);
  CHECK(closed.requests == 0);
}

TEST_CASE(
    "a certificate of another authority, one that has ended, or one that names nobody, is "
    "refused") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  auto store = std::make_shared<tls::CredentialStore>();
  const auto client = ClientOf(echo.url(), store);
  CHECK_THAT(Ask(*client).status().message(), Catch::Contains("no certificate yet"));
  store->Set(Authority("other").For(kPod, authority.pem()));
  CHECK(Ask(*client).status().code() == StatusCode::kUnavailable);
  store->Set(authority.For(kPod, "", -1s));
  CHECK(Ask(*client).status().code() == StatusCode::kUnavailable);
  store->Set(authority.For(tls::Agent("Upper", "p", "u")));
  CHECK(Ask(*client).status().code() == StatusCode::kUnavailable);
  CHECK(echo.requests == 0);
  store->Set(authority.For(kPod));
  CHECK(Ask(*client).ok());
}

TEST_CASE("a server that is somebody else is not spoken to, and the message says why") {
  const Authority authority;
  const auto mine = authority.StoreFor(tls::Operator());
  Echo agent(authority.StoreFor(kPod));
  CHECK(Ask(*ClientOf(agent.url(), mine, kPod)).ok());
  CHECK(Ask(*ClientOf(agent.url(), mine, tls::Agent("ns", "p-0"))).ok());
  for (const tls::Identity& expected :
       {tls::Operator(), tls::Agent("ns", "p-0", "u-2"), tls::Agent("ns", "p-1")}) {
    const Status status = Ask(*ClientOf(agent.url(), mine, expected)).status();
    CHECK(status.code() == StatusCode::kUnavailable);
    CHECK_THAT(status.message(),
               Catch::Contains("the certificate is not that of " + tls::Describe(expected)));
  }
  Echo stranger(Authority("other").StoreFor(kPod));
  CHECK_THAT(Ask(*ClientOf(stranger.url(), mine, kPod)).status().message(),
             Catch::Contains("its certificate: "));
  CHECK(agent.requests == 2);
  CHECK(stranger.requests == 0);
}

TEST_CASE("clients of one store at the same time each speak to whom they are for only") {
  const Authority authority;
  const auto mine = authority.StoreFor(tls::Operator());
  Echo agent(authority.StoreFor(kPod));
  std::atomic<int> right = 0, wrong = 0;
  const auto ask = [&](const tls::Identity& expected, std::atomic<int>& answered) {
    for (int i = 0; i < 20; ++i) answered += Ask(*ClientOf(agent.url(), mine, expected)).ok();
  };
  std::thread other([&] { ask(tls::Agent("ns", "p-0", "u-2"), wrong); });
  ask(kPod, right);
  other.join();
  CHECK(right == 20);
  CHECK(wrong == 0);
  CHECK(agent.requests == 20);
}

TEST_CASE("new credentials count from the next request on, on both sides") {
  const Authority before("before"), after("after");
  const auto server = before.StoreFor(tls::Operator());
  const auto mine = before.StoreFor(kPod);
  Echo echo(server);
  const auto client = ClientOf(echo.url(), mine);
  REQUIRE(Ask(*client).ok());
  // First both trust both, then each shows the new one, then nobody trusts the old one.
  tls::Credentials both = *server->Get();
  both.trusted += after.pem();
  server->Set(both);
  both = *mine->Get();
  both.trusted += after.pem();
  mine->Set(both);
  REQUIRE(Ask(*client).ok());
  server->Set(after.For(tls::Operator(), before.pem()));
  REQUIRE(Ask(*client).ok());
  mine->Set(after.For(kPod, before.pem()));
  REQUIRE(Ask(*client).ok());
  server->Set(after.For(tls::Operator()));
  mine->Set(after.For(kPod));
  REQUIRE(Ask(*client).ok());
  CHECK_FALSE(Ask(*ClientOf(echo.url(), before.StoreFor(kPod))).ok());
}

TEST_CASE("a server without a certificate answers nobody, and does once it has one") {
  const Authority authority;
  const auto none = std::make_shared<tls::CredentialStore>();
  Echo echo(none);
  const auto client = ClientOf(echo.url(), authority.StoreFor(kPod));
  CHECK(Ask(*client).status().code() == StatusCode::kUnavailable);
  none->Set(authority.For(tls::Operator()));
  CHECK(Ask(*client).ok());
}

TEST_CASE("a connection ends with the certificate that it was made with") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  auto store = std::make_shared<tls::CredentialStore>();
  store->Set(authority.For(kPod, "", 2s));
  const auto client = ClientOf(echo.url(), store);
  REQUIRE(Ask(*client).ok());
  std::this_thread::sleep_for(2'500ms);
  CHECK_FALSE(Ask(*client).ok());
  CHECK(echo.requests == 1);
}

TEST_CASE("a connection is kept for the next request") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  const auto client = ClientOf(echo.url(), authority.StoreFor(kPod));
  REQUIRE(Ask(*client).ok());
  echo.credentials->Set({.trusted = "", .certificate = "", .key = ""});  // No new one can be made.
  for (int i = 0; i < 20; ++i) REQUIRE(Ask(*client).ok());
}

TEST_CASE("a connection that is opened ahead is the next request's") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  const auto client = ClientOf(echo.url(), authority.StoreFor(kPod));
  REQUIRE(client->Connect(5s).ok());
  REQUIRE(client->Connect(5s).ok());
  CHECK(echo.requests == 0);
  echo.credentials->Set({.trusted = "", .certificate = "", .key = ""});  // No new one can be made.
  CHECK(Ask(*client).ok());
  CHECK(client->Connect(5s).ok());
  CHECK_THAT(ClientOf(echo.url(), authority.StoreFor(kPod))->Connect(5s).message(),
             Catch::Contains(echo.url()));
}

TEST_CASE("a connection that the server has ended is not taken for open") {
  const Authority authority;
  auto first = std::make_unique<Echo>(authority.StoreFor(tls::Operator()));
  const auto client = ClientOf(first->url(), authority.StoreFor(kPod));
  REQUIRE(Ask(*client).ok());
  first.reset();
  CHECK(client->Connect(5s).code() == StatusCode::kUnavailable);
}

TEST_CASE("what is written to a server that has ended is an error, and ends nobody") {
  const Authority authority;
  auto echo = std::make_unique<Echo>(authority.StoreFor(kPod));
  const auto store = authority.StoreFor(tls::Operator());
  const auto soon = [] { return std::chrono::steady_clock::now() + 5s; };
  const auto connection = Must(tls::Connection::Open({"127.0.0.1", echo->server->port(), kPod},
                                                     Must(store->ForClients()), soon(), 5s));
  CHECK(connection->IsOpen());
  echo.reset();
  CHECK_FALSE(connection->IsOpen());
  Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) {  // The first ones may still be taken.
    status = connection->Write(std::string(1'000, 'x'), soon());
    std::this_thread::sleep_for(1ms);
  }
  CHECK(status.code() == StatusCode::kUnavailable);
  char byte;
  CHECK(connection->Read(&byte, 1, soon()).status().code() == StatusCode::kUnavailable);
}

TEST_CASE("nothing passes through a connection once it is time, whatever has come") {
  const Authority authority;
  Echo echo(authority.StoreFor(kPod));
  const auto store = authority.StoreFor(tls::Operator());
  const auto after = [](auto time) { return std::chrono::steady_clock::now() + time; };
  const std::string request = "GET / HTTP/1.1\r\n\r\n";
  const auto connection = Must(tls::Connection::Open({"127.0.0.1", echo.server->port(), kPod},
                                                     Must(store->ForClients()), after(5s), 5s));
  REQUIRE(connection->Write(request, after(5s)).ok());
  while (echo.requests == 0) std::this_thread::sleep_for(5ms);
  std::this_thread::sleep_for(50ms);  // For the answer.
  char byte;
  CHECK(connection->Read(&byte, 1, after(-1ms)).status().code() == StatusCode::kDeadlineExceeded);
  CHECK(connection->Write(request, after(-1ms)).code() == StatusCode::kDeadlineExceeded);
}

TEST_CASE("a server that takes connections and says nothing is given up in time") {
  const Authority authority;
  const int silent = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(::bind(silent, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(::listen(silent, 10) == 0);
  REQUIRE(::getsockname(silent, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const auto client = ClientOf("https://127.0.0.1:" + std::to_string(ntohs(address.sin_port)),
                               authority.StoreFor(tls::Operator()));
  const auto began = std::chrono::steady_clock::now();
  const Status status = client->Connect(200ms);
  CHECK(status.code() == StatusCode::kDeadlineExceeded);
  CHECK_THAT(status.message(), Catch::Contains("TLS handshake: no answer in time"));
  // Silence ends it before the deadline of the whole.
  CHECK(client->Send({.target = "/", .timeout = 200ms, .deadline = 60s}).status().code() ==
        StatusCode::kDeadlineExceeded);
  CHECK(std::chrono::steady_clock::now() - began < 10s);
  ::close(silent);
}

TEST_CASE("who speaks plain HTTP to a port with TLS, or nothing at all, harms nobody") {
  const Authority authority;
  Echo echo(authority.StoreFor(tls::Operator()));
  const std::string plain = "http://127.0.0.1:" + std::to_string(echo.server->port());
  const auto odd = Client::Create(plain);
  REQUIRE(odd.ok());
  CHECK_FALSE((*odd)->Send({.target = "/", .timeout = 5s, .deadline = 5s}).ok());
  std::vector<int> silent;
  for (int i = 0; i < 60; ++i) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(echo.server->port());
    REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    silent.push_back(fd);
  }
  CHECK(Ask(*ClientOf(echo.url(), authority.StoreFor(kPod))).ok());
  for (const int fd : silent) ::close(fd);
  CHECK(echo.requests == 1);
}

TEST_CASE("a client of ourselves keeps to its bounds and deadlines") {
  const Authority authority;
  const auto store = authority.StoreFor(tls::Operator());
  std::atomic<bool> held = true;
  const auto server =
      Must(Server::Listen("127.0.0.1", 0,
                          [&](const Request& request) {
                            while (request.target == "/slow" && held)
                              std::this_thread::sleep_for(5ms);
                            return Response{.status = 200,
                                            .headers = {{"X-Seen", request.headers.at("x-mine")}},
                                            .body = std::string(5'000, 'x')};
                          },
                          {.max_body_bytes = 1'000, .tls = ServerTls{.credentials = store}}));
  const auto client = ClientOf("https://127.0.0.1:" + std::to_string(server->port()) + "/", store);
  const Headers mine = {{"X-Mine", "7"}};
  CHECK(client->Send({.target = "/", .headers = mine}, 4'000).status().code() ==
        StatusCode::kResourceExhausted);
  const Response whole = Must(client->Send({.target = "/", .headers = mine}, 5'000));
  CHECK(whole.body.size() == 5'000);
  CHECK(whole.headers.at("x-seen") == "7");
  const Response refused =
      Must(client->Send({.method = "POST", .target = "/", .body = std::string(2'000, 'y')}));
  CHECK(refused.status == 413);
  CHECK(client->Send({.target = "/slow", .headers = mine, .timeout = 300ms}).status().code() ==
        StatusCode::kDeadlineExceeded);
  CHECK(client->Send({.target = "/slow", .headers = mine, .deadline = 300ms}).status().code() ==
        StatusCode::kDeadlineExceeded);
  held = false;
  CHECK(client->Send({.target = "/slow", .headers = mine}).ok());
}

TEST_CASE(
    "only https addresses reach one of ourselves, and an open port of nobody's is Unavailable") {
  const auto store = Authority().StoreFor(kPod);
  for (const char* url : {"http://127.0.0.1:7", "https://127.0.0.1", "127.0.0.1:7", ""}) {
    INFO(url);
    CHECK(Client::Create(url, MutualTls{.credentials = store, .peer = kPod}).status().code() ==
          StatusCode::kInvalidArgument);
  }
  CHECK(Ask(*ClientOf("https://127.0.0.1:1", store)).status().code() == StatusCode::kUnavailable);
}

TEST_CASE("who names a file of authorities trusts none of the system's") {
  const Authority named("named");
  const Authority systems("the system's");
  const auto folder =
      std::filesystem::temp_directory_path() / ("rouse-authorities-" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const auto file = [&](const std::string& name, const Authority& authority) {
    std::ofstream(folder / name) << authority.pem();
    return (folder / name).string();
  };
  REQUIRE(::setenv("SSL_CERT_FILE", file("system", systems).c_str(), 1) == 0);
  Echo echo(systems.StoreFor(tls::Operator()), tls::ClientCertificate::kOptional);
  const auto asked = [&](const std::string& ca_file) {
    const auto client = Must(Client::Create(
        echo.url(), TlsOptions{.ca_file = ca_file, .certificate_file = "", .key_file = ""}));
    return Ask(*client).status().code();
  };
  CHECK(asked("") == StatusCode::kOk);
  CHECK(asked(file("same", systems)) == StatusCode::kOk);
  CHECK(asked(file("named", named)) == StatusCode::kUnavailable);
  ::unsetenv("SSL_CERT_FILE");
  std::filesystem::remove_all(folder);
}

}  // namespace rouse::http
