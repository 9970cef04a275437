// What a TLS connection is made with: our certificate, whom we trust, and whom we expect.
//
// TLS 1.3 only. A session is never resumed: each connection looks at certificates anew.

#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "common/result.h"
#include "common/tls/identity.h"
#include "common/tls/rotation.h"

struct ssl_ctx_st;
struct ssl_st;

namespace rouse::tls {

/// Certificates and keys as PEM.
struct Credentials {
  std::string trusted;      ///< The authorities whose certificates are believed.
  std::string certificate;  ///< Our own; empty: none yet, servers may still be asked.
  std::string key;          ///< Its key.

  bool operator==(const Credentials&) const = default;
};

/// What all connections to servers that are made with the same credentials share: it is larger than
/// one of them, and takes longer to make. Those who have it use it at the same time and do not lock
/// it, so nobody may change it; whom a connection is for is said of the connection (Expect).
using ClientContext = std::shared_ptr<ssl_ctx_st>;
/// InvalidArgument when the credentials are not good.
Result<ClientContext> MakeClientContext(const Credentials& credentials);

/// Lets the handshake of `connection`, which is of a ClientContext, fail with anybody but
/// `expected` (Matches). Where nobody was expected, it fails with everybody. Addresses and host
/// names are not looked at, the identity says more.
Status Expect(ssl_st* connection, const Identity& expected);

/// The credentials of this process as they are now. Thread-safe.
class CredentialStore {
 public:
  void Set(Credentials credentials);
  /// nullptr before the first Set. What was gotten does not change.
  std::shared_ptr<const Credentials> Get() const;
  /// Made of the present credentials, the same one until the next Set. Unavailable before the first
  /// Set, InvalidArgument when the credentials are not good.
  Result<ClientContext> ForClients() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const Credentials> current_;  ///< Guarded by mutex_.
  /// Guarded by mutex_: of current_.
  Result<ClientContext> for_clients_ =
      Unavailable("this process has no certificate yet, and knows no authority");
};

/// Whether a server answers those who show no certificate.
enum class ClientCertificate { kRequired, kOptional };

/// Prepares `context` for a server. InvalidArgument when the credentials are not good, or lack a
/// certificate.
Status SetUpServer(ssl_ctx_st* context, const Credentials& credentials, ClientCertificate client);

/// Whether `certificate` is of an authority in the bundle `trusted`, and good now.
Status CheckCertificate(const std::string& trusted, const std::string& certificate);

/// Who is at the other end of an established connection.
struct Peer {
  Identity identity;
  TimePoint not_after;  ///< When its certificate ends.
};

/// nullopt: it has shown no certificate. InvalidArgument: one that names nobody of ours.
Result<std::optional<Peer>> PeerOf(const ssl_st* connection);

/// Why the other end was not believed; empty when it was.
std::string WhyNotBelieved(const ssl_st* connection, const Identity& expected);

/// The end of the certificate that `context` shows; none: it shows none.
std::optional<TimePoint> EndOfOwn(const ssl_ctx_st* context);

}  // namespace rouse::tls
