#include "operator/trust/keeper.h"

#include <pthread.h>

#include <algorithm>

#include "common/log.h"

namespace rouse::trust {
namespace {

/// After a step that failed, or found nothing yet.
constexpr std::chrono::milliseconds kRetry{1'000};

}  // namespace

Keeper::Keeper(kube::Api& api, Bundles& bundles, KeeperOptions options)
    : api_(api), bundles_(bundles), options_(std::move(options)) {}

void Keeper::Start() {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "trust");
    Run(stop);
  });
}

void Keeper::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

void Keeper::Run(const std::stop_token& stop) {
  std::string last_error;
  while (!stop.stop_requested()) {
    const Status done = Step();
    if (!done.ok() && done.message() != last_error) {
      log::Warning("certificate authorities", {{"error", done.ToString()}});
    }
    last_error = done.message();
    std::unique_lock lock(mutex_);
    stopped_.wait_for(lock, stop, done.ok() ? Pause() : kRetry, [] { return false; });
  }
}

// Certificates may be of less life than the time between two looks at the Secret.
std::chrono::milliseconds Keeper::Pause() const {
  const auto left = std::chrono::milliseconds(facts_.renew_at - options_.now());
  return std::clamp(left, kRetry, options_.poll);
}

Status Keeper::Step() {
  const std::lock_guard step(step_mutex_);
  const tls::TimePoint now = options_.now();
  auto read = Read();
  if (!read.ok()) {
    // Time goes on: what is known may have to be renewed.
    if (last_) ROUSE_RETURN_IF_ERROR(Adopt(*last_, now));
    const std::lock_guard lock(mutex_);
    if (!facts_.not_ready.empty()) facts_.not_ready = read.status().message();
    return read.status();
  }
  last_ = *read;
  const Status led = options_.leads() ? Lead(*last_, now) : Status();
  ROUSE_RETURN_IF_ERROR(Adopt(*last_, now));
  return led;
}

Result<Authorities> Keeper::Read() {
  const auto secret = api_.Get(kube::Secrets(), options_.secret);
  if (secret.ok()) {
    auto read = AuthoritiesFromSecret(*secret);
    if (read.ok()) return read;
    return read.status().WithContext(
        "Secret " + options_.secret.Key() +
        " is not as Rouse writes it (deleted, it is made anew, with new authorities)");
  }
  if (secret.status().code() != StatusCode::kNotFound) return secret.status();
  if (!options_.leads()) {
    return Unavailable("Secret " + options_.secret.Key() +
                       " is not there yet: the leader makes it");
  }
  return Authorities();
}

Result<Authorities> Keeper::Write(const Authorities& authorities) {
  const Json secret = SecretOf(authorities, options_.secret.ns, options_.secret.name);
  const auto written = authorities.resource_version.empty() ? api_.Create(kube::Secrets(), secret)
                                                            : api_.Update(kube::Secrets(), secret);
  if (!written.ok()) return written.status().WithContext("the certificate authorities");
  return AuthoritiesFromSecret(*written);
}

// What only the leader does. Each change is written before it is acted on.
Status Keeper::Lead(Authorities& authorities, tls::TimePoint now) {
  const tls::Rotation rotation = PlanRotation(authorities, now, options_.policy);
  if (rotation.create || !rotation.ended.empty()) {
    Authorities changed{.all = {}, .resource_version = authorities.resource_version};
    for (std::size_t i = 0; i < authorities.all.size(); ++i) {
      const bool ended =
          std::find(rotation.ended.begin(), rotation.ended.end(), i) != rotation.ended.end();
      if (!ended) changed.all.push_back(authorities.all[i]);
    }
    if (rotation.create) {
      ROUSE_ASSIGN_OR_RETURN(Authority made, NewAuthority(now, options_.policy));
      for (Authority& other : changed.all) other.times.retire = false;
      changed.all.push_back(std::move(made));
    }
    ROUSE_ASSIGN_OR_RETURN(authorities, Write(changed));
    log::Info("certificate authorities changed", {{"made", rotation.create},
                                                  {"ended", rotation.ended.size()},
                                                  {"kept", authorities.all.size()}});
  }
  const std::string bundle = BundleOf(authorities, PlanRotation(authorities, now, options_.policy));
  {
    const std::lock_guard lock(mutex_);
    bundle_ = bundle;  // Before it is written: whoever prepares a namespace must not undo that.
  }
  ROUSE_RETURN_IF_ERROR(bundles_.EnsureAll(options_.namespaces(), bundle, Bundles::Clock::now()));
  Authority& newest = authorities.all.back();
  if (newest.times.published) return {};
  Authorities changed = authorities;
  changed.all.back().times.published = now;
  ROUSE_ASSIGN_OR_RETURN(authorities, Write(changed));
  return {};
}

Status Keeper::Adopt(const Authorities& authorities, tls::TimePoint now) {
  const tls::Rotation rotation = PlanRotation(authorities, now, options_.policy);
  if (!rotation.signer) {
    return Unavailable(
        "Secret " + options_.secret.Key() +
        " has no authority that is alive by this node's clock: when all have ended the "
        "leader makes one; when none has begun, set the clock right, or annotate the "
        "Secret with " +
        kAnnotationReplace);
  }
  const Authority& signs = authorities.all[*rotation.signer];
  ROUSE_ASSIGN_OR_RETURN(tls::Certificate certificate,
                         tls::Certificate::FromPem(signs.certificate));
  ROUSE_ASSIGN_OR_RETURN(tls::Key key, tls::Key::FromPem(signs.key));
  const std::string bundle = BundleOf(authorities, rotation);
  {
    const std::lock_guard lock(mutex_);
    signer_ = std::make_shared<const Signer>(Signer{std::move(certificate), std::move(key)});
    bundle_ = bundle;
    facts_.trusted = rotation.trusted.size();
    facts_.authority_ends = signs.times.not_after;
  }
  return RenewOwn(authorities, rotation, bundle, now);
}

Status Keeper::RenewOwn(const Authorities& authorities, const tls::Rotation& rotation,
                        const std::string& bundle, tls::TimePoint now) {
  const bool still_trusted =
      own_ && std::any_of(rotation.trusted.begin(), rotation.trusted.end(), [&](std::size_t i) {
        return authorities.all[i].certificate == own_->authority;
      });
  const auto current = credentials_->Get();
  if (still_trusted && now >= own_->begins && now < own_->renew_at) {
    if (current->trusted != bundle) {
      credentials_->Set(
          {.trusted = bundle, .certificate = current->certificate, .key = current->key});
    }
    return {};
  }
  ROUSE_ASSIGN_OR_RETURN(const tls::Key key, tls::Key::Generate());
  ROUSE_ASSIGN_OR_RETURN(const SignedCertificate made, Sign(key, {.identity = tls::Operator(),
                                                                  .addresses = options_.addresses,
                                                                  .hosts = options_.hosts}));
  ROUSE_ASSIGN_OR_RETURN(const tls::Certificate certificate,
                         tls::Certificate::FromPem(made.certificate));
  ROUSE_ASSIGN_OR_RETURN(std::string key_pem, key.ToPem());
  own_ = Own{.begins = certificate.validity().not_before,
             .renew_at = now + made.renew_after,
             .authority = authorities.all[*rotation.signer].certificate};
  credentials_->Set(
      {.trusted = bundle, .certificate = made.certificate, .key = std::move(key_pem)});
  const std::lock_guard lock(mutex_);
  facts_.own_ends = certificate.validity().not_after;
  facts_.renew_at = own_->renew_at;
  facts_.not_ready.clear();
  return {};
}

Result<SignedCertificate> Keeper::Sign(const tls::Key& key, const tls::Names& names) const {
  std::shared_ptr<const Signer> signer;
  {
    const std::lock_guard lock(mutex_);
    signer = signer_;
  }
  if (signer == nullptr) return Unavailable("there is no certificate authority yet");
  const tls::TimePoint now = options_.now();
  const tls::Validity validity =
      tls::ValidityFrom(now, options_.policy.certificate_lifetime, signer->certificate.validity());
  ROUSE_ASSIGN_OR_RETURN(const tls::Certificate made,
                         tls::Sign(signer->certificate, signer->key, key, names, validity));
  return SignedCertificate{.certificate = made.ToPem(),
                           .renew_after = tls::RenewAfter(now, validity)};
}

Status Keeper::Prepare(const std::string& ns) {
  std::string bundle;
  {
    const std::lock_guard lock(mutex_);
    bundle = bundle_;
  }
  if (bundle.empty()) return Unavailable("there is no certificate authority yet");
  return bundles_.Ensure(ns, bundle, Bundles::Clock::now());
}

Keeper::Facts Keeper::facts() const {
  const std::lock_guard lock(mutex_);
  return facts_;
}

}  // namespace rouse::trust
