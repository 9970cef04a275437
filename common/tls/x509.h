// Keys, certificates and requests for them. OpenSSL is wrapped here, in context.h and in
// connection.h; its types are named nowhere else but where a server takes a connection.
//
// All keys are EC P-256, all certificates X.509 v3, all text PEM. Values: cheap to move, and safe
// to read from several threads.

#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/tls/identity.h"
#include "common/tls/rotation.h"

struct evp_pkey_st;
struct x509_st;

namespace rouse::tls {

/// A key of EC P-256: a pair, or its public half.
class Key {
 public:
  static Result<Key> Generate();
  /// A private key. InvalidArgument for what is none of EC P-256.
  static Result<Key> FromPem(std::string_view pem);

  /// The private key as PKCS#8.
  Result<std::string> ToPem() const;

  evp_pkey_st* native() const { return key_.get(); }

 private:
  friend Result<Key> KeyOfRequest(std::string_view pem);
  explicit Key(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}

  std::shared_ptr<evp_pkey_st> key_;
};

class Certificate {
 public:
  /// The first certificate in `pem`.
  static Result<Certificate> FromPem(std::string_view pem);

  std::string ToPem() const;
  Validity validity() const;
  /// Who it is for. InvalidArgument when it carries no URI, several, or another one than ours.
  Result<Identity> identity() const;

  x509_st* native() const { return certificate_.get(); }
  explicit Certificate(std::shared_ptr<x509_st> certificate)
      : certificate_(std::move(certificate)) {}

 private:
  std::shared_ptr<x509_st> certificate_;
};

/// A request for a certificate for `key`, which proves that whoever asks has it. It names nobody:
/// whom the certificate is for is decided by who signs it.
Result<std::string> MakeRequest(const Key& key);

/// The public key that a request is for. InvalidArgument when its signature is not by that key, or
/// the key is not EC P-256. At most kMaxRequestBytes.
Result<Key> KeyOfRequest(std::string_view pem);
inline constexpr std::size_t kMaxRequestBytes = 4u << 10;

/// What a certificate says of its holder.
struct Names {
  Identity identity;
  std::vector<std::string> addresses;  ///< IP addresses; what is none is left out.
  std::vector<std::string> hosts;      ///< DNS names.
};

/// An authority that may sign certificates, and no other authorities.
Result<Certificate> MakeAuthority(const Key& key, const std::string& name,
                                  const Validity& validity);

/// A certificate for the holder of `subject`, good for both ends of a connection.
Result<Certificate> Sign(const Certificate& authority, const Key& authority_key, const Key& subject,
                         const Names& names, const Validity& validity);

}  // namespace rouse::tls
