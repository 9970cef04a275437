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

/// The credentials of this process as they are now. Thread-safe.
class CredentialStore {
 public:
  void Set(Credentials credentials);
  /// nullptr before the first Set. What was gotten does not change.
  std::shared_ptr<const Credentials> Get() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const Credentials> current_;  ///< Guarded by mutex_.
};

/// Whether a server answers those who show no certificate.
enum class ClientCertificate { kRequired, kOptional };

/// Prepares `context` for a server. InvalidArgument when the credentials are not good, or lack a
/// certificate.
Status SetUpServer(ssl_ctx_st* context, const Credentials& credentials, ClientCertificate client);
/// Prepares `context` for connections to `expected` (Matches): a handshake with anybody else fails.
/// Addresses and host names are not looked at, the identity says more.
Status SetUpClient(ssl_ctx_st* context, const Credentials& credentials, const Identity& expected);

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
