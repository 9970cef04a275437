// Keeps the operator's certificate authorities, and its own certificate.
//
// The authorities are in one Secret, which every replica reads and the leader alone writes. What
// each of them does now follows from the Secret and the time alone (common/tls/rotation.h), so that
// replicas sign alike. One thread ("trust").

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/tls/context.h"
#include "common/tls/rotation.h"
#include "common/tls/x509.h"
#include "operator/kube/api.h"
#include "operator/trust/authorities.h"
#include "operator/trust/bundles.h"

namespace rouse::trust {

struct KeeperOptions {
  kube::ObjectName secret;
  tls::RotationPolicy policy;
  std::vector<std::string> addresses;  ///< IP addresses of the operator's own.
  std::vector<std::string> hosts;      ///< And its DNS names.
  /// How often to look at the Secret.
  std::chrono::milliseconds poll{10'000};
  std::function<tls::TimePoint()> now;
  std::function<bool()> leads;
  /// The namespaces whose agents are to be told whom to trust.
  std::function<std::vector<std::string>()> namespaces;
};

struct SignedCertificate {
  std::string certificate;  ///< PEM.
  std::chrono::seconds renew_after{0};
};

class Keeper {
 public:
  /// References must outlive it. `api` should have a short timeout.
  Keeper(kube::Api& api, Bundles& bundles, KeeperOptions options);

  /// From now on on a thread of its own, until Stop.
  void Start();
  /// Ends that; waits for a step that is under way.
  void Stop();

  /// Reads the Secret, changes what is to be changed if this replica leads, and renews the own
  /// certificate when it is time. What is known already stays good when it fails. Thread-safe.
  Status Step();

  /// The operator's own, and whom it trusts.
  std::shared_ptr<const tls::CredentialStore> credentials() const { return credentials_; }

  /// A certificate for the holder of `key`. Unavailable while there is no authority.
  Result<SignedCertificate> Sign(const tls::Key& key, const tls::Names& names) const;

  /// The ConfigMap of `ns` says whom to trust; before a pod is made that needs it.
  Status Prepare(const std::string& ns);

  struct Facts {
    std::string not_ready;  ///< Why there are no credentials yet; empty once there are.
    std::size_t trusted = 0;
    tls::TimePoint authority_ends;
    tls::TimePoint own_ends;
    tls::TimePoint renew_at;  ///< The own certificate.
  };
  Facts facts() const;

 private:
  struct Signer {
    tls::Certificate certificate;
    tls::Key key;
  };
  struct Own {
    tls::TimePoint begins;  ///< Before that, by a clock that was set back, nobody believes it.
    tls::TimePoint renew_at;
    std::string authority;  ///< PEM of who has signed it.
  };

  Result<Authorities> Read();
  Status Lead(Authorities& authorities, tls::TimePoint now);
  Result<Authorities> Write(const Authorities& authorities);
  Status Adopt(const Authorities& authorities, tls::TimePoint now);
  Status RenewOwn(const Authorities& authorities, const tls::Rotation& rotation,
                  const std::string& bundle, tls::TimePoint now);
  std::chrono::milliseconds Pause() const;  ///< Requires mutex_.
  void Run(const std::stop_token& stop);

  kube::Api& api_;
  Bundles& bundles_;
  const KeeperOptions options_;
  const std::shared_ptr<tls::CredentialStore> credentials_ =
      std::make_shared<tls::CredentialStore>();

  std::mutex step_mutex_;            ///< One step at a time; taken before mutex_.
  std::optional<Authorities> last_;  ///< Guarded by step_mutex_: as they were last read or written.
  std::optional<Own> own_;           ///< Guarded by step_mutex_.

  mutable std::mutex mutex_;
  std::shared_ptr<const Signer> signer_;  ///< Guarded by mutex_.
  std::string bundle_;                    ///< Guarded by mutex_.
  Facts facts_{.not_ready = "the certificate authority is not read yet",
               .trusted = 0,
               .authority_ends = {},
               .own_ends = {},
               .renew_at = {}};  ///< Guarded by mutex_.
  std::condition_variable_any stopped_;
  std::jthread thread_;
};

}  // namespace rouse::trust
