#include "operator/kubectl/doctor.h"

#include <algorithm>
#include <set>

#include "common/tls/x509.h"
#include "operator/api/names.h"
#include "operator/kube/lease.h"
#include "operator/kubectl/doctor_nodes.h"
#include "operator/kubectl/doctor_services.h"
#include "operator/plan/objects.h"

namespace rouse::kubectl {
namespace {

using plan::At;
using plan::Text;
using Level = Finding::Level;

constexpr char kCrd[] = "CustomResourceDefinition";
constexpr char kOperator[] = "operator";
constexpr char kPemBegin[] = "-----BEGIN CERTIFICATE-----";
constexpr char kApplyCrd[] =
    "kubectl apply --server-side -f charts/rouse/crds/ of the release that runs (helm upgrade "
    "leaves it as it is)";

std::int64_t Int(const Json& object, std::string_view key, std::int64_t fallback) {
  const Json& value = At(object, key);
  return value.is_number_integer() ? value.get<std::int64_t>() : fallback;
}

const Json* Version(const Json& crd, std::string_view name) {
  for (const Json& version : At(At(crd, "spec"), "versions")) {
    if (Text(version, "name") == name) return &version;
  }
  return nullptr;
}

// A spec and a status in which every field is there.
Json FullSpec() {
  api::Spec spec;
  spec.engine.image_pull_policy = "Always";
  spec.fast_start.capture_mode = api::CaptureMode::kLazy;
  Json out = ToJson(spec);
  out["model"]["storage"]["hostPath"] = {{"path", ""}};
  return out;
}

Json FullStatus() {
  api::ServiceStatus status;
  status.last_failure = status.last_guard_failure = TimePoint();
  status.conditions.emplace_back();
  api::ScaleOut scale_out;
  scale_out.phases.emplace_back();
  status.scale_outs.push_back(scale_out);
  return ToJson(status);
}

void Compare(const Json& value, const Json& schema, const std::string& path,
             std::vector<std::string>& missing) {
  if (At(schema, "x-kubernetes-preserve-unknown-fields") == true) return;
  if (value.is_array() && !value.empty()) {
    return Compare(value[0], At(schema, "items"), path, missing);
  }
  if (!value.is_object() || At(schema, "additionalProperties").is_object()) return;
  const Json& properties = At(schema, "properties");
  for (const auto& [key, member] : value.items()) {
    const Json& known = At(properties, key);
    if (!known.is_object()) {
      missing.push_back(path + "." + key);
    } else {
      Compare(member, known, path + "." + key, missing);
    }
  }
}

Finding CheckCrd(const Result<Json>& crd) {
  if (!crd.ok()) {
    if (crd.status().code() == StatusCode::kNotFound) {
      return {Level::kError, kCrd, "modelservices.rouse.dev is not installed",
              "install Rouse's chart: helm install rouse charts/rouse -n rouse-system"};
    }
    return {Level::kUnchecked, kCrd, crd.status().message(), ""};
  }
  const Json* version = Version(*crd, "v1alpha1");
  if (version == nullptr || At(*version, "served") != true) {
    return {Level::kError, kCrd, "modelservices.rouse.dev does not serve v1alpha1", kApplyCrd};
  }
  for (const Json& condition : At(At(*crd, "status"), "conditions")) {
    if (Text(condition, "type") == "Established" && Text(condition, "status") != "True") {
      return {Level::kError, kCrd,
              "modelservices.rouse.dev is not established: " + Text(condition, "message"),
              "kubectl describe crd modelservices.rouse.dev"};
    }
  }
  if (const auto missing = FieldsMissingFrom(*crd); !missing.empty()) {
    std::string list;
    for (const std::string& field : missing) list += (list.empty() ? "" : ", ") + field;
    return {Level::kWarning, kCrd,
            "modelservices.rouse.dev is of an older release, the API server drops " + list,
            kApplyCrd};
  }
  return {Level::kOk, kCrd, "v1alpha1 is served, and has all fields that this program knows", ""};
}

// "0.1.0" of "registry:5000/rouse-operator:0.1.0"; empty when it is named by digest or not at all.
std::string TagOf(const std::string& image) {
  if (image.find('@') != std::string::npos) return "";
  const auto colon = image.rfind(':');
  const auto slash = image.rfind('/');
  if (colon == std::string::npos || (slash != std::string::npos && colon < slash)) return "";
  return image.substr(colon + 1);
}

void CheckDeployment(const Json& deployment, const std::string& version,
                     std::vector<Finding>& out) {
  const Json& metadata = At(deployment, "metadata");
  const std::string ns = Text(metadata, "namespace"), name = Text(metadata, "name");
  const std::int64_t wanted = Int(At(deployment, "spec"), "replicas", 1);
  const std::int64_t ready = Int(At(deployment, "status"), "readyReplicas", 0);
  const std::string what = "Deployment " + ns + "/" + name + ": " + std::to_string(ready) + " of " +
                           std::to_string(wanted) + " ready";
  if (ready > 0) {
    out.push_back({Level::kOk, kOperator, what, ""});
  } else if (wanted == 0) {
    out.push_back({Level::kWarning, kOperator, what,
                   "kubectl -n " + ns + " scale deployment/" + name + " --replicas=2"});
  } else {
    out.push_back({Level::kError, kOperator, what,
                   "kubectl -n " + ns + " describe deployment/" + name + "; kubectl -n " + ns +
                       " logs deployment/" + name});
  }
  const std::string own = version.substr(0, version.find(' '));
  for (const Json& container :
       At(At(At(At(deployment, "spec"), "template"), "spec"), "containers")) {
    const std::string tag = TagOf(Text(container, "image"));
    if (Text(container, "name") != "operator" || tag.empty() || tag == own) continue;
    out.push_back({Level::kWarning, kOperator,
                   "its image is " + tag + ", this kubectl-rouse is " + own,
                   "use the kubectl-rouse of the same release"});
  }
}

// The pod's name: what follows tells one process of it from the next.
std::string PodOf(const std::string& holder) {
  return holder.substr(0, holder.rfind('_'));
}

void CheckLease(const Evidence& evidence, TimePoint now, std::vector<Finding>& out) {
  const std::string ns = evidence.operator_namespace;
  const std::string remedy =
      "look whether the operator's pods run, and at their logs: kubectl -n " + ns + " get pods";
  if (!evidence.lease.ok()) {
    const Status& why = evidence.lease.status();
    if (why.code() == StatusCode::kNotFound) {
      out.push_back({Level::kError, kOperator,
                     "no Lease rouse-operator in namespace " + ns + ": none has ever led there",
                     "name the operator's namespace with --operator-namespace, or: " + remedy});
    } else {
      out.push_back({Level::kUnchecked, kOperator, "who leads: " + why.message(), ""});
    }
    return;
  }
  const kube::LeaseRecord record = kube::DecodeLease(*evidence.lease);
  const auto renewed = api::ParseTime(record.renew_time);
  if (record.holder.empty() || !renewed) {
    out.push_back({Level::kError, kOperator, "nobody leads: the lease was given back", remedy});
  } else if (now - *renewed > record.duration) {
    out.push_back({Level::kError, kOperator,
                   "nobody leads: " + PodOf(record.holder) + " renewed the lease " +
                       Age(now - *renewed) + " ago, by this machine's clock",
                   remedy});
  } else {
    out.push_back({Level::kOk, kOperator, PodOf(record.holder) + " leads", ""});
  }
}

void CheckOperator(const Evidence& evidence, const std::string& version, TimePoint now,
                   std::vector<Finding>& out) {
  if (!evidence.deployments.ok()) {
    out.push_back({Level::kUnchecked, kOperator, evidence.deployments.status().message(), ""});
  } else if (evidence.deployments->empty()) {
    out.push_back({Level::kError, kOperator, "no Deployment of an operator was found",
                   "install Rouse's chart, or name its namespace with --operator-namespace"});
  } else {
    for (const Json& deployment : *evidence.deployments) CheckDeployment(deployment, version, out);
  }
  CheckLease(evidence, now, out);
}

std::vector<tls::Certificate> CertificatesIn(const std::string& bundle) {
  std::vector<tls::Certificate> out;
  for (auto at = bundle.find(kPemBegin); at != std::string::npos;) {
    const auto next = bundle.find(kPemBegin, at + 1);
    if (auto one = tls::Certificate::FromPem(std::string_view(bundle).substr(
            at, next == std::string::npos ? std::string::npos : next - at));
        one.ok()) {
      out.push_back(*std::move(one));
    }
    at = next;
  }
  return out;
}

// Who starts in a namespace trusts what its ConfigMap says. A successor of an authority is made
// when a third of its time is left.
Finding CheckTrust(const std::string& ns, const Result<Json>& trust, TimePoint now) {
  const std::string subject = "namespace " + ns;
  const std::string remedy =
      "the operator mends it within a minute while it leads and may write ConfigMaps there: "
      "look at its log";
  if (!trust.ok()) {
    if (trust.status().code() == StatusCode::kNotFound) {
      return {Level::kError, subject, "ConfigMap rouse-ca is not there: no pod can start", remedy};
    }
    return {Level::kUnchecked, subject, "certificates: " + trust.status().message(), ""};
  }
  const auto all = CertificatesIn(Text(At(*trust, "data"), api::kTrustBundleKey));
  if (all.empty()) {
    return {Level::kError, subject, "ConfigMap rouse-ca holds no certificate", remedy};
  }
  tls::Validity last = all.front().validity();
  for (const auto& one : all) {
    if (one.validity().not_after > last.not_after) last = one.validity();
  }
  const auto left = last.not_after - std::chrono::floor<std::chrono::seconds>(now);
  const std::string end = api::FormatSeconds(last.not_after);
  if (left <= std::chrono::seconds(0)) {
    return {Level::kError, subject,
            "all certificate authorities of ConfigMap rouse-ca have ended, "
            "the last one at " +
                end,
            remedy};
  }
  if (left * 6 < last.not_after - last.not_before) {
    return {Level::kWarning, subject,
            "the certificate authority ends at " + end +
                ", and its successor, which was due before, is not there",
            remedy};
  }
  return {Level::kOk, subject,
          std::to_string(all.size()) +
              (all.size() == 1 ? " certificate authority" : " certificate authorities") +
              " trusted, good until " + end,
          ""};
}

}  // namespace

std::vector<std::string> FieldsMissingFrom(const Json& crd) {
  std::vector<std::string> missing;
  const Json* version = Version(crd, "v1alpha1");
  if (version == nullptr) return missing;
  const Json& properties = At(At(At(*version, "schema"), "openAPIV3Schema"), "properties");
  Compare(FullSpec(), At(properties, "spec"), "spec", missing);
  Compare(FullStatus(), At(properties, "status"), "status", missing);
  return missing;
}

std::vector<Finding> Diagnose(const Evidence& evidence, const std::string& version, TimePoint now) {
  std::vector<Finding> out = {CheckCrd(evidence.crd)};
  CheckOperator(evidence, version, now, out);
  for (const auto& [ns, read] : evidence.namespaces) {
    out.push_back(CheckTrust(ns, read.trust, now));
  }
  for (const ServiceView& view : evidence.services) {
    const auto read = evidence.namespaces.find(view.service.metadata.ns);
    CheckService(view, read == evidence.namespaces.end() ? NamespaceEvidence() : read->second, now,
                 out);
  }
  CheckNodes(evidence.services, out);
  return out;
}

std::string DoctorText(const std::vector<Finding>& findings, const Screen& screen) {
  std::string out;
  std::size_t width = 0;
  for (const Finding& finding : findings)
    width = std::max(width, Width(Printable(finding.subject)));
  for (const Finding& finding : findings) {
    const auto [mark, colour] = [&]() -> std::pair<std::string, Colour> {
      switch (finding.level) {
        case Level::kOk:
          return {"ok", Colour::kGood};
        case Level::kUnchecked:
          return {"? ", Colour::kFaint};
        case Level::kWarning:
          return {"~ ", Colour::kWarning};
        case Level::kError:
          break;
      }
      return {"! ", Colour::kBad};
    }();
    const std::string subject = Printable(finding.subject);
    out += Paint(screen, colour, mark) + "  " + subject + std::string(width - Width(subject), ' ') +
           "  " + Printable(finding.text) + "\n";
    if (!finding.remedy.empty()) {
      out += std::string(4 + width, ' ') + "  -> " + Printable(finding.remedy) + "\n";
    }
  }
  return out;
}

Json ToJson(const std::vector<Finding>& findings) {
  static constexpr std::string_view kLevels[] = {"Ok", "Unchecked", "Warning", "Error"};
  Json list = Json::array();
  for (const Finding& finding : findings) {
    list.push_back({{"level", kLevels[static_cast<std::size_t>(finding.level)]},
                    {"subject", finding.subject},
                    {"text", finding.text},
                    {"remedy", finding.remedy}});
  }
  return {{"findings", list}};
}

int ErrorsIn(const std::vector<Finding>& findings) {
  return static_cast<int>(
      std::count_if(findings.begin(), findings.end(),
                    [](const Finding& finding) { return finding.level == Level::kError; }));
}

}  // namespace rouse::kubectl
