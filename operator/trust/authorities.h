// The certificate authorities as the Secret keeps them, and what is to be done about them now.
// Pure.

#pragma once

#include <string>
#include <vector>

#include "common/json.h"
#include "common/result.h"
#include "common/tls/rotation.h"

namespace rouse::trust {

using json::Json;

/// On the Secret: whoever sets it, to whatever, asks for a new authority. The operator takes it
/// away once there is one.
inline constexpr char kAnnotationReplace[] = "rouse.dev/replace-authority";

struct Authority {
  std::string certificate;  ///< PEM.
  std::string key;          ///< PEM.
  tls::AuthorityTimes times;
};

/// All that are kept, oldest first.
struct Authorities {
  std::vector<Authority> all;
  std::string resource_version;  ///< Of the Secret; empty: it is not there yet.
};

/// InvalidArgument for a Secret that somebody else has written, or damaged.
Result<Authorities> AuthoritiesFromSecret(const Json& secret);

/// The whole Secret, on condition that it is unchanged.
Json SecretOf(const Authorities& authorities, const std::string& ns, const std::string& name);

/// Made now, to be trusted from now on.
Result<Authority> NewAuthority(tls::TimePoint now, const tls::RotationPolicy& policy);

tls::Rotation PlanRotation(const Authorities& authorities, tls::TimePoint now,
                           const tls::RotationPolicy& policy);

/// The certificates of those that `rotation` trusts, one after the other.
std::string BundleOf(const Authorities& authorities, const tls::Rotation& rotation);

}  // namespace rouse::trust
