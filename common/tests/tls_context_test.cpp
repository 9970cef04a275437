// One context for all connections with the same credentials, and whom each of them is for.

#include <openssl/ssl.h>

#include <catch2/catch.hpp>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/tests/tls_authority.h"
#include "common/tls/context.h"

namespace rouse::tls {
namespace {

using testing::Authority;
using testing::Must;

const Identity kGuard = Agent("ns", "p-0", "u-1");
const Identity kOther = Agent("ns", "p-0", "u-2");
constexpr const char* kNotOther = "the certificate is not that of the agent of pod ns/p-0";

using Connection = std::unique_ptr<SSL, decltype(&SSL_free)>;

/// Both ends of one handshake, in memory.
class Handshake {
 public:
  Handshake(SSL_CTX* server, const ClientContext& client, const std::optional<Identity>& expected)
      : server_(SSL_new(server), &SSL_free), client_(SSL_new(client.get()), &SSL_free) {
    BIO* left = nullptr;
    BIO* right = nullptr;
    if (BIO_new_bio_pair(&left, 0, &right, 0) != 1) throw std::runtime_error("no pair of BIOs");
    SSL_set_bio(server_.get(), left, left);
    SSL_set_bio(client_.get(), right, right);
    SSL_set_accept_state(server_.get());
    SSL_set_connect_state(client_.get());
    if (expected && !Expect(client_.get(), *expected).ok()) throw std::runtime_error("Expect");
  }

  void Step() {
    done_ = SSL_do_handshake(client_.get()) == 1;
    SSL_do_handshake(server_.get());
  }
  bool Succeeds() {
    for (int i = 0; i < 10 && !done_; ++i) Step();
    return done_;
  }
  SSL* client() const { return client_.get(); }

 private:
  Connection server_;
  Connection client_;
  bool done_ = false;
};

struct Ends {
  Ends() {
    if (!SetUpServer(server.get(), authority.For(kGuard), ClientCertificate::kRequired).ok()) {
      throw std::runtime_error("SetUpServer");
    }
  }
  Handshake To(const std::optional<Identity>& expected) const {
    return Handshake(server.get(), client, expected);
  }

  const Authority authority;
  const ClientContext server{SSL_CTX_new(TLS_server_method()), &SSL_CTX_free};
  const ClientContext client = Must(MakeClientContext(authority.For(Operator())));
};

}  // namespace

TEST_CASE("connections of one context are told apart by whom each is for") {
  const Ends ends;
  Handshake right = ends.To(kGuard);
  Handshake wrong = ends.To(kOther);
  for (int i = 0; i < 5; ++i) {  // In turns.
    right.Step();
    wrong.Step();
  }
  CHECK(right.Succeeds());
  CHECK(WhyNotBelieved(right.client(), kGuard).empty());
  CHECK(Must(PeerOf(right.client()))->identity == kGuard);
  CHECK_FALSE(wrong.Succeeds());
  CHECK(WhyNotBelieved(wrong.client(), kOther) == kNotOther);
}

TEST_CASE("threads share a context, and each connection keeps to whom it is for") {
  const Ends ends;
  std::vector<std::thread> threads;
  std::vector<int> believed(4);
  for (std::size_t each = 0; each < believed.size(); ++each) {
    threads.emplace_back([&, each] {
      for (int i = 0; i < 25; ++i) {
        believed[each] += ends.To(each % 2 == 0 ? kGuard : kOther).Succeeds() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(believed == std::vector<int>{25, 0, 25, 0});
}

TEST_CASE("a connection that is for nobody believes nobody") {
  const Ends ends;
  Handshake nobody = ends.To(std::nullopt);
  CHECK_FALSE(nobody.Succeeds());
  CHECK_FALSE(WhyNotBelieved(nobody.client(), kGuard).empty());
  CHECK(SSL_get_verify_result(nobody.client()) == X509_V_ERR_APPLICATION_VERIFICATION);
}

TEST_CASE("whom a connection is for may be said anew before its handshake") {
  const Ends ends;
  Handshake changed = ends.To(kGuard);
  REQUIRE(Expect(changed.client(), kOther).ok());
  CHECK_FALSE(changed.Succeeds());
}

TEST_CASE("a server of an earlier TLS is not spoken to") {
  const Ends ends;
  REQUIRE(SSL_CTX_set_min_proto_version(ends.server.get(), TLS1_2_VERSION) == 1);
  REQUIRE(SSL_CTX_set_max_proto_version(ends.server.get(), TLS1_2_VERSION) == 1);
  CHECK_FALSE(ends.To(kGuard).Succeeds());
}

TEST_CASE("a store has one context for its credentials, and a new one for new credentials") {
  const Ends ends;
  CredentialStore store;
  CHECK(store.ForClients().status().code() == StatusCode::kUnavailable);
  store.Set(ends.authority.For(Operator()));
  const ClientContext first = Must(store.ForClients());
  CHECK(Must(store.ForClients()) == first);

  auto under_way = std::make_unique<Handshake>(ends.server.get(), first, kGuard);
  under_way->Step();
  store.Set(Authority("other").For(Operator()));
  const ClientContext second = Must(store.ForClients());
  CHECK(second != first);
  CHECK(under_way->Succeeds());  // With what it was begun with.
  Handshake later(ends.server.get(), second, kGuard);
  CHECK_FALSE(later.Succeeds());
  CHECK_THAT(WhyNotBelieved(later.client(), kGuard), Catch::Contains("its certificate: "));
}

TEST_CASE("a context lives as long as a connection that is of it") {
  const Ends ends;
  CredentialStore store;
  store.Set(ends.authority.For(Operator()));
  Handshake last(ends.server.get(), Must(store.ForClients()), kGuard);
  store.Set(ends.authority.For(Operator()));
  CHECK(last.Succeeds());
}

TEST_CASE("of credentials that are not good no context is made, and the error says why") {
  const Authority authority;
  CredentialStore store;
  Credentials bad = authority.For(Operator());
  SECTION("no authority") {
    bad.trusted.clear();
    store.Set(bad);
    CHECK(store.ForClients().status().message() == "the bundle of authorities has no certificate");
  }
  SECTION("a certificate that is none") {
    bad.certificate = "none";
    store.Set(bad);
  }
  SECTION("the key of another certificate") {
    bad.key = authority.For(Operator()).key;
    store.Set(bad);
    CHECK_THAT(store.ForClients().status().message(), Catch::Contains("use the own certificate: "));
  }
  CHECK(store.ForClients().status().code() == StatusCode::kInvalidArgument);
  CHECK(store.Get() != nullptr);
}

}  // namespace rouse::tls
