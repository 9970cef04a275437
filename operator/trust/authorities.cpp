#include "operator/trust/authorities.h"

#include "common/base64.h"
#include "common/tls/x509.h"
#include "operator/api/time.h"

namespace rouse::trust {
namespace {

constexpr char kKey[] = "authorities.json";
constexpr int kFormat = 1;
constexpr std::size_t kMaxAuthorities = 16;

Result<Authority> ReadAuthority(const Json& value, const std::string& path) {
  json::Reader in(value, path);
  Authority out;
  out.certificate = in.String("certificate");
  out.key = in.String("key");
  out.times.created = tls::TimePoint(std::chrono::seconds(in.Int("created")));
  if (in.Has("published")) {
    out.times.published = tls::TimePoint(std::chrono::seconds(in.Int("published")));
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  const auto certificate = tls::Certificate::FromPem(out.certificate);
  if (!certificate.ok()) return certificate.status().WithContext(path + ".certificate");
  if (const auto key = tls::Key::FromPem(out.key); !key.ok()) {
    return key.status().WithContext(path + ".key");
  }
  out.times.not_after = certificate->validity().not_after;
  return out;
}

Result<std::vector<Authority>> Read(const std::string& encoded) {
  ROUSE_ASSIGN_OR_RETURN(const std::string text, Base64Decode(encoded, kKey));
  ROUSE_ASSIGN_OR_RETURN(const Json document, json::Parse(text, kKey, 1u << 20));
  json::Reader in(document, kKey);
  if (in.Int("format") != kFormat) in.Fail("format", "is not 1: another release has written it");
  const Json& items = in.Array("authorities");
  if (items.size() > kMaxAuthorities) in.Fail("authorities", "has more than 16 entries");
  ROUSE_RETURN_IF_ERROR(in.status());
  std::vector<Authority> out;
  for (const Json& item : items) {
    const std::string path = std::string(kKey) + ".authorities[" + std::to_string(out.size()) + "]";
    ROUSE_ASSIGN_OR_RETURN(Authority authority, ReadAuthority(item, path));
    out.push_back(std::move(authority));
  }
  return out;
}

}  // namespace

Result<Authorities> AuthoritiesFromSecret(const Json& secret) {
  json::Reader in(secret, "secret");
  const Json& metadata = in.Object("metadata");
  const Json& data = in.ObjectOrEmpty("data");
  json::Reader about(metadata, "secret.metadata");
  json::Reader content(data, "secret.data");
  const std::string version = about.String("resourceVersion");
  const Json& annotations = about.ObjectOrEmpty("annotations");
  const std::string encoded = content.String(kKey);
  for (const json::Reader* reader : {&in, &about, &content}) {
    ROUSE_RETURN_IF_ERROR(reader->status());
  }
  Authorities out{.all = {}, .resource_version = version};
  ROUSE_ASSIGN_OR_RETURN(out.all, Read(encoded));
  if (annotations.contains(kAnnotationReplace) && !out.all.empty()) {
    out.all.back().times.retire = true;
  }
  return out;
}

Json SecretOf(const Authorities& authorities, const std::string& ns, const std::string& name) {
  Json items = Json::array();
  for (const Authority& authority : authorities.all) {
    Json item = {{"certificate", authority.certificate},
                 {"key", authority.key},
                 {"created", authority.times.created.time_since_epoch().count()}};
    if (authority.times.published) {
      item["published"] = authority.times.published->time_since_epoch().count();
    }
    items.push_back(std::move(item));
  }
  const std::string text = json::Dump({{"format", kFormat}, {"authorities", std::move(items)}});
  Json metadata = {
      {"name", name}, {"namespace", ns}, {"labels", {{"app.kubernetes.io/managed-by", "rouse"}}}};
  if (!authorities.resource_version.empty()) {
    metadata["resourceVersion"] = authorities.resource_version;
  }
  if (!authorities.all.empty() && authorities.all.back().times.retire) {
    metadata["annotations"][kAnnotationReplace] = "asked for";
  }
  return {{"metadata", std::move(metadata)},
          {"type", "Opaque"},
          {"data", {{kKey, Base64Encode(text)}}}};
}

Result<Authority> NewAuthority(tls::TimePoint now, const tls::RotationPolicy& policy) {
  ROUSE_ASSIGN_OR_RETURN(const tls::Key key, tls::Key::Generate());
  // Each has a name of its own, by which OpenSSL finds who has signed a certificate.
  const std::string name = "Rouse authority of " + api::FormatSeconds(now);
  const tls::Validity validity{.not_before = now - tls::kClockSkew,
                               .not_after = now + policy.authority_lifetime};
  ROUSE_ASSIGN_OR_RETURN(const tls::Certificate certificate,
                         tls::MakeAuthority(key, name, validity));
  Authority out;
  out.certificate = certificate.ToPem();
  ROUSE_ASSIGN_OR_RETURN(out.key, key.ToPem());
  out.times = {
      .created = now, .not_after = validity.not_after, .published = std::nullopt, .retire = false};
  return out;
}

tls::Rotation PlanRotation(const Authorities& authorities, tls::TimePoint now,
                           const tls::RotationPolicy& policy) {
  std::vector<tls::AuthorityTimes> times;
  for (const Authority& authority : authorities.all) times.push_back(authority.times);
  return tls::PlanRotation(times, now, policy);
}

std::string BundleOf(const Authorities& authorities, const tls::Rotation& rotation) {
  std::string out;
  for (const std::size_t i : rotation.trusted) out += authorities.all[i].certificate;
  return out;
}

}  // namespace rouse::trust
