// A certificate authority of the tests' own, made and used by the real code.

#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "common/tls/context.h"
#include "common/tls/x509.h"

namespace rouse::tls::testing {

inline TimePoint Now() {
  return std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());
}

/// Throws what is an error: also on a thread that is not the test's.
template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().ToString());
  return *std::move(result);
}

class Authority {
 public:
  explicit Authority(const std::string& name = "test authority")
      : key_(Must(Key::Generate())),
        certificate_(Must(MakeAuthority(key_, name,
                                        {.not_before = Now() - std::chrono::hours(1),
                                         .not_after = Now() + std::chrono::hours(1)}))) {}

  std::string pem() const { return certificate_.ToPem(); }
  const Certificate& certificate() const { return certificate_; }
  const Key& key() const { return key_; }

  Certificate SignFor(const Key& subject, const Identity& identity,
                      std::chrono::seconds lifetime = std::chrono::minutes(10)) const {
    return Must(
        Sign(certificate_, key_, subject,
             {.identity = identity, .addresses = {"127.0.0.1"}, .hosts = {}},
             {.not_before = Now() - std::chrono::minutes(30), .not_after = Now() + lifetime}));
  }

  /// What `identity` shows, trusting this authority and those of `more`.
  Credentials For(const Identity& identity, const std::string& more = "",
                  std::chrono::seconds lifetime = std::chrono::minutes(10)) const {
    const Key key = Must(Key::Generate());
    return {.trusted = pem() + more,
            .certificate = SignFor(key, identity, lifetime).ToPem(),
            .key = Must(key.ToPem())};
  }

  std::shared_ptr<CredentialStore> StoreFor(const Identity& identity) const {
    auto store = std::make_shared<CredentialStore>();
    store->Set(For(identity));
    return store;
  }

 private:
  Key key_;
  Certificate certificate_;
};

}  // namespace rouse::tls::testing
