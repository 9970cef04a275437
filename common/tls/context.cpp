#include "common/tls/context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include "common/tls/x509.h"

namespace rouse::tls {
namespace {

Status ContextFailed(const std::string& what) {
  const unsigned long error = ERR_peek_last_error();
  const char* const reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  ERR_clear_error();
  return InvalidArgument(what + (reason == nullptr ? "" : std::string(": ") + reason));
}

// Each certificate of the bundle.
Status Fill(X509_STORE* store, const std::string& bundle) {
  constexpr std::string_view kEnd = "-----END CERTIFICATE-----";
  std::string_view rest = bundle;
  int count = 0;
  for (auto end = rest.find(kEnd); end != std::string_view::npos; end = rest.find(kEnd)) {
    ROUSE_ASSIGN_OR_RETURN(const Certificate authority,
                           Certificate::FromPem(rest.substr(0, end + kEnd.size())));
    // What OpenSSL else finds out in the first handshake, when several may be under way.
    if (X509_check_purpose(authority.native(), -1, 0) != 1 ||
        X509_STORE_add_cert(store, authority.native()) != 1) {
      return ContextFailed("trust an authority");
    }
    rest.remove_prefix(end + kEnd.size());
    ++count;
  }
  return count > 0 ? Status() : InvalidArgument("the bundle of authorities has no certificate");
}

// Those of the bundle, and nothing of the system's.
Status Trust(SSL_CTX* context, const std::string& bundle) {
  X509_STORE* const store = X509_STORE_new();
  if (store == nullptr) return ContextFailed("a store of authorities");
  SSL_CTX_set_cert_store(context, store);  // Owns it from here on.
  return Fill(store, bundle);
}

Status SetUp(SSL_CTX* context, const Credentials& credentials) {
  if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1) return ContextFailed("TLS 1.3");
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  ROUSE_RETURN_IF_ERROR(Trust(context, credentials.trusted));
  if (credentials.certificate.empty()) return {};
  ROUSE_ASSIGN_OR_RETURN(const Certificate own, Certificate::FromPem(credentials.certificate));
  ROUSE_ASSIGN_OR_RETURN(const Key key, Key::FromPem(credentials.key));
  if (SSL_CTX_use_certificate(context, own.native()) != 1 ||
      SSL_CTX_use_PrivateKey(context, key.native()) != 1) {
    return ContextFailed("use the own certificate");
  }
  return {};
}

// Lives as long as the connection, as its ex data.
void FreeExpected(void*, void* expected, CRYPTO_EX_DATA*, int, long, void*) {
  delete static_cast<Identity*>(expected);
}
int ExpectedIndex() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, &FreeExpected);
  return index;
}

const Identity* ExpectedBy(X509_STORE_CTX* chain) {
  const void* const connection =
      X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
  if (connection == nullptr) return nullptr;
  return static_cast<const Identity*>(
      SSL_get_ex_data(static_cast<const SSL*>(connection), ExpectedIndex()));
}

// Called in a client's handshake: the chain first, by OpenSSL, then who it is.
int Verify(X509_STORE_CTX* chain, void*) {
  if (X509_verify_cert(chain) != 1) return 0;
  X509* const leaf = X509_STORE_CTX_get0_cert(chain);
  X509_up_ref(leaf);
  const auto found =
      Certificate(std::shared_ptr<X509>(leaf, [](X509* x) { X509_free(x); })).identity();
  const Identity* const expected = ExpectedBy(chain);
  if (expected != nullptr && found.ok() && Matches(*expected, *found)) return 1;
  X509_STORE_CTX_set_error(chain, X509_V_ERR_APPLICATION_VERIFICATION);
  return 0;
}

}  // namespace

Result<ClientContext> MakeClientContext(const Credentials& credentials) {
  ClientContext context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  if (context == nullptr) return ContextFailed("a context for connections");
  ROUSE_RETURN_IF_ERROR(SetUp(context.get(), credentials));
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(context.get(), &Verify, nullptr);
  return context;
}

Status Expect(SSL* connection, const Identity& expected) {
  if (auto* const before = static_cast<Identity*>(SSL_get_ex_data(connection, ExpectedIndex()))) {
    *before = expected;
    return {};
  }
  auto kept = std::make_unique<Identity>(expected);
  if (SSL_set_ex_data(connection, ExpectedIndex(), kept.get()) != 1) {
    return ContextFailed("keep whom a connection is for");
  }
  static_cast<void>(kept.release());
  return {};
}

void CredentialStore::Set(Credentials credentials) {
  auto shared = std::make_shared<const Credentials>(std::move(credentials));
  auto for_clients = MakeClientContext(*shared);
  const std::lock_guard lock(mutex_);
  current_ = std::move(shared);
  for_clients_ = std::move(for_clients);
}

std::shared_ptr<const Credentials> CredentialStore::Get() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

Result<ClientContext> CredentialStore::ForClients() const {
  const std::lock_guard lock(mutex_);
  return for_clients_;
}

Status SetUpServer(SSL_CTX* context, const Credentials& credentials, ClientCertificate client) {
  if (credentials.certificate.empty()) {
    return InvalidArgument("a server needs a certificate");
  }
  ROUSE_RETURN_IF_ERROR(SetUp(context, credentials));
  SSL_CTX_set_verify(
      context,
      SSL_VERIFY_PEER |
          (client == ClientCertificate::kRequired ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
      nullptr);
  return {};
}

Status CheckCertificate(const std::string& trusted, const std::string& certificate) {
  const std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(),
                                                                      &X509_STORE_free);
  const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> chain(X509_STORE_CTX_new(),
                                                                              &X509_STORE_CTX_free);
  if (!store || !chain) return ContextFailed("a store of authorities");
  ROUSE_RETURN_IF_ERROR(Fill(store.get(), trusted));
  ROUSE_ASSIGN_OR_RETURN(const Certificate leaf, Certificate::FromPem(certificate));
  if (X509_STORE_CTX_init(chain.get(), store.get(), leaf.native(), nullptr) != 1) {
    return ContextFailed("check a certificate");
  }
  if (X509_verify_cert(chain.get()) == 1) return {};
  return InvalidArgument(X509_verify_cert_error_string(X509_STORE_CTX_get_error(chain.get())));
}

Result<std::optional<Peer>> PeerOf(const SSL* connection) {
  X509* const shown = SSL_get1_peer_certificate(connection);
  if (shown == nullptr) return std::optional<Peer>();
  const Certificate certificate(std::shared_ptr<X509>(shown, [](X509* x) { X509_free(x); }));
  ROUSE_ASSIGN_OR_RETURN(Identity identity, certificate.identity());
  return std::optional(
      Peer{.identity = std::move(identity), .not_after = certificate.validity().not_after});
}

std::string WhyNotBelieved(const SSL* connection, const Identity& expected) {
  const long result = SSL_get_verify_result(connection);
  if (result == X509_V_OK) return "";
  if (result == X509_V_ERR_APPLICATION_VERIFICATION) {
    return "the certificate is not that of " + Describe(expected);
  }
  return std::string("its certificate: ") + X509_verify_cert_error_string(result);
}

std::optional<TimePoint> EndOfOwn(const SSL_CTX* context) {
  X509* const own = SSL_CTX_get0_certificate(context);
  if (own == nullptr) return std::nullopt;
  X509_up_ref(own);
  return Certificate(std::shared_ptr<X509>(own, [](X509* x) { X509_free(x); }))
      .validity()
      .not_after;
}

}  // namespace rouse::tls
