// Keeps this agent's certificate: asks the operator for it with the pod's token, asks for the next
// one in time, and reads anew whom to trust.
//
// Keys are made here, one for each certificate, and never leave the process. One thread
// ("certificate").

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "common/certificates.h"
#include "common/http.h"
#include "common/tls/context.h"

namespace rouse::agent {

struct CertifierOptions {
  std::string operator_url;  ///< "https://10.96.0.7:7482"
  std::string ca_file;       ///< Whom to trust; changes while the pod runs.
  std::string token_file;    ///< Renewed by the kubelet.
  tls::Identity self;        ///< Whom the certificate has to be for.
};

struct CertifierHooks {
  /// The operator was asked.
  std::function<void(bool ok)> on_asked;
  /// There is a new certificate, which ends then.
  std::function<void(tls::TimePoint end)> on_certificate;
};

/// How long to wait after so many failures in a row; `jitter` is in [0, 1].
std::chrono::milliseconds AskAgain(int failures, double jitter);

class Certifier {
 public:
  /// Hooks are called on its thread. InvalidArgument for a URL that is none.
  static Result<std::unique_ptr<Certifier>> Start(CertifierOptions options, CertifierHooks hooks);
  ~Certifier();

  /// Empty until there is a certificate.
  std::shared_ptr<const tls::CredentialStore> credentials() const { return credentials_; }

  /// Waits until there is a certificate, or `stop`.
  void Await(const std::stop_token& stop) const;

  /// Why there is none yet; empty once there is one.
  std::string waiting_for() const;

 private:
  Certifier(CertifierOptions options, CertifierHooks hooks);
  void Run(const std::stop_token& stop);
  /// Brings bundle and certificate up to date, if it is time for that.
  Status Step();
  Status Ask(const std::string& bundle);
  void Keep(const std::string& bundle);

  const CertifierOptions options_;
  const CertifierHooks hooks_;
  const std::shared_ptr<tls::CredentialStore> credentials_ =
      std::make_shared<tls::CredentialStore>();
  /// What asks: it trusts, and has nothing to show yet.
  const std::shared_ptr<tls::CredentialStore> asker_ = std::make_shared<tls::CredentialStore>();
  std::unique_ptr<http::Client> client_;

  // The thread's own:
  std::string certificate_;
  std::string key_;
  std::chrono::steady_clock::time_point renew_at_;
  std::minstd_rand random_{std::random_device{}()};

  mutable std::mutex mutex_;
  mutable std::condition_variable_any changed_;
  std::string waiting_for_ = "the first answer of the operator";  ///< Guarded by mutex_.
  std::jthread thread_;
};

}  // namespace rouse::agent
