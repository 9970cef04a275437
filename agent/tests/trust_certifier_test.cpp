// The agent's end of getting a certificate, against an operator that the tests play with real
// certificates over real connections.

#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "agent/trust/certifier.h"
#include "common/tests/eventually.h"
#include "common/tests/tls_authority.h"

namespace rouse::agent {
namespace {

using namespace std::chrono_literals;
using test::Eventually;
using tls::testing::Authority;
using tls::testing::Must;

const tls::Identity kSelf = tls::Agent("ns", "demo-0", "u-1");

struct World {
  World() {
    std::string name = std::filesystem::temp_directory_path() / "rouse-certifier-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
    store->Set(authority.For(tls::Operator()));
    server = Must(http::Server::Listen(
        "127.0.0.1", 0, [this](const http::Request& request) { return Answer(request); },
        {.tls =
             http::ServerTls{.credentials = store, .client = tls::ClientCertificate::kOptional}}));
  }
  ~World() { std::filesystem::remove_all(folder); }

  http::Response Answer(const http::Request& request) {
    ++asked;
    if (away) return http::ErrorResponse(Unavailable("away"));
    const auto body = json::Parse(request.body, "request");
    const auto wanted = body.ok() ? CertificateRequestFromJson(*body) : body.status();
    if (!wanted.ok() || request.peer) return http::ErrorResponse(InvalidArgument("odd request"));
    if (wanted->token != "token") return http::ErrorResponse(PermissionDenied("another token"));
    const auto key = tls::KeyOfRequest(wanted->csr);
    if (!key.ok()) return http::ErrorResponse(key.status());
    return http::JsonResponse(json::Dump(
        ToJson(CertificateAnswer{.certificate = signer->SignFor(*key, named, lifetime).ToPem(),
                                 .renew_after = renew_after})));
  }

  void Write(const std::string& file, const std::string& text) const {
    std::ofstream(folder / (file + ".new")) << text;
    std::filesystem::rename(folder / (file + ".new"), folder / file);
  }
  void Mount() const {
    Write("ca.crt", authority.pem());
    Write("token", "token\n");
  }
  std::unique_ptr<Certifier> Start() {
    return Must(
        Certifier::Start({.operator_url = "https://127.0.0.1:" + std::to_string(server->port()),
                          .ca_file = folder / "ca.crt",
                          .token_file = folder / "token",
                          .self = kSelf},
                         {.on_asked = [](bool) {}, .on_certificate = [](tls::TimePoint) {}}));
  }

  /// Once it has its first certificate.
  std::unique_ptr<Certifier> StartWithCertificate() {
    Mount();
    auto certifier = Start();
    certifier->Await({});
    return certifier;
  }

  Authority authority{"first"};
  const Authority* signer = &authority;
  tls::Identity named = kSelf;
  std::atomic<bool> away{false};
  std::atomic<int> asked{0};
  std::chrono::milliseconds renew_after = 1h;
  std::atomic<std::chrono::seconds> lifetime{10min};
  std::filesystem::path folder;
  std::shared_ptr<tls::CredentialStore> store = std::make_shared<tls::CredentialStore>();
  std::unique_ptr<http::Server> server;
};

}  // namespace

TEST_CASE("an agent gets its certificate for its token") {
  World world;
  const auto certifier = world.StartWithCertificate();
  const auto got = certifier->credentials()->Get();
  REQUIRE(got != nullptr);
  CHECK(got->trusted == world.authority.pem());
  CHECK(*tls::Certificate::FromPem(got->certificate)->identity() == kSelf);
  CHECK(certifier->waiting_for().empty());
  CHECK(world.asked == 1);
}

TEST_CASE("it says what it waits for, and goes on when that comes") {
  World world;
  world.away = true;
  const auto certifier = world.Start();
  const auto waits = [&](const std::string& what) {
    return Eventually([&] { return certifier->waiting_for().find(what) != std::string::npos; });
  };
  CHECK(waits("ca.crt"));
  world.Write("ca.crt", world.authority.pem());
  CHECK(waits("token"));
  world.Write("token", "token");
  CHECK(waits("away"));
  CHECK(certifier->credentials()->Get() == nullptr);
  world.away = false;
  CHECK(Eventually([&] { return certifier->waiting_for().empty(); }));
  CHECK(certifier->credentials()->Get() != nullptr);
}

TEST_CASE("an operator of another authority is not shown the token") {
  World world;
  world.Mount();
  world.Write("ca.crt", Authority("other").pem());
  const auto certifier = world.Start();
  CHECK(Eventually(
      [&] { return certifier->waiting_for().find("TLS handshake") != std::string::npos; }));
  CHECK(world.asked == 0);
}

TEST_CASE("somebody with a certificate who is not the operator is not shown the token") {
  World world;
  world.Mount();
  world.store->Set(world.authority.For(tls::Agent("ns", "demo-1", "u-2")));
  const auto certifier = world.Start();
  CHECK(Eventually([&] {
    return certifier->waiting_for().find("not that of the operator") != std::string::npos;
  }));
  CHECK(world.asked == 0);
}

TEST_CASE("a certificate for somebody else is not used") {
  World world;
  world.Mount();
  world.named = tls::Agent("ns", "demo-0", "u-2");
  const auto certifier = world.Start();
  CHECK(Eventually(
      [&] { return certifier->waiting_for().find("another pod") != std::string::npos; }));
  CHECK(certifier->credentials()->Get() == nullptr);
}

TEST_CASE("a certificate of an operator whose clock is wrong does not take a good one's place") {
  World world;
  world.renew_after = 1s;
  const auto certifier = world.StartWithCertificate();
  const auto first = certifier->credentials()->Get();
  world.lifetime = -1min;
  const int asked = world.asked;
  CHECK(Eventually([&] { return world.asked > asked + 1; }));
  CHECK(tls::CheckCertificate(world.authority.pem(), certifier->credentials()->Get()->certificate)
            .ok());
  world.lifetime = 10min;
  CHECK(Eventually([&] { return certifier->credentials()->Get()->key != first->key; }));
}

TEST_CASE("one that begins with a certificate that is not good waits for another") {
  World world;
  world.Mount();
  world.lifetime = -1min;
  const auto certifier = world.Start();
  CHECK(Eventually(
      [&] { return certifier->waiting_for().find("this node's clock") != std::string::npos; }));
  world.lifetime = 10min;
  CHECK(Eventually([&] { return certifier->waiting_for().empty(); }));
}

TEST_CASE("it is renewed in time, with another key; while nobody renews it, it stays") {
  World world;
  world.renew_after = 1s;
  const auto certifier = world.StartWithCertificate();
  const auto first = certifier->credentials()->Get();
  CHECK(Eventually([&] { return certifier->credentials()->Get()->key != first->key; }));
  world.away = true;
  const auto second = certifier->credentials()->Get();
  const int asked = world.asked;
  CHECK(Eventually([&] { return world.asked > asked + 1; }));
  CHECK(certifier->credentials()->Get()->certificate == second->certificate);
  CHECK(certifier->waiting_for().empty());
}

TEST_CASE(
    "a bundle that changes is taken over; one without the own authority makes it ask at once") {
  World world;
  const auto certifier = world.StartWithCertificate();
  const auto first = certifier->credentials()->Get();
  const Authority next("next");
  world.Write("ca.crt", world.authority.pem() + next.pem());
  CHECK(Eventually([&] {
    return certifier->credentials()->Get()->trusted == world.authority.pem() + next.pem();
  }));
  CHECK(certifier->credentials()->Get()->certificate == first->certificate);
  CHECK(world.asked == 1);

  world.signer = &next;
  world.store->Set(next.For(tls::Operator()));
  world.Write("ca.crt", next.pem());
  CHECK(Eventually([&] {
    const auto now = certifier->credentials()->Get();
    return tls::CheckCertificate(next.pem(), now->certificate).ok();
  }));
}

TEST_CASE("pauses between attempts grow and are bounded") {
  CHECK(AskAgain(1, 1.0) == 200ms);
  CHECK(AskAgain(1, 0.0) == 100ms);
  CHECK(AskAgain(5, 1.0) == 3'200ms);
  CHECK(AskAgain(1'000, 1.0) == 15s);
}

}  // namespace rouse::agent
