// `kubectl rouse doctor`: what is wrong, and what to do about it. Pure: decides by what was read,
// and says of what could not be read that it was not checked, and why.

#pragma once

#include <map>
#include <string>
#include <vector>

#include "operator/kubectl/text.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

struct Finding {
  enum class Level {
    kOk,
    kUnchecked,  ///< It could not be read, or nobody tells it.
    kWarning,    ///< It works, slower or less safe than it could.
    kError,      ///< It does not work.
  };
  Level level = Level::kOk;
  std::string subject;  ///< "operator", "default/demo", "default/demo-1".
  std::string text;
  std::string remedy;  ///< What to do; empty when there is nothing to do.

  bool operator==(const Finding&) const = default;
};

/// What was read of a namespace that has ModelServices.
struct NamespaceEvidence {
  Result<Json> trust = Unavailable("it was not read");                ///< ConfigMap rouse-ca.
  Result<std::vector<Json>> claims = Unavailable("it was not read");  ///< PersistentVolumeClaims.
  Result<std::vector<Json>> pod_warnings =
      Unavailable("it was not read");  ///< Events about pods, of type Warning.
};

/// What was read of the cluster, or why it could not be.
struct Evidence {
  Result<Json> crd = Unavailable("it was not read");
  Result<std::vector<Json>> deployments =
      Unavailable("it was not read");  ///< The operator's, wherever they are.
  std::string operator_namespace;      ///< Where the lease was looked for.
  Result<Json> lease = Unavailable("it was not read");
  std::vector<ServiceView> services;
  std::map<std::string, NamespaceEvidence> namespaces;
};

/// The definition, the operator, namespaces, ModelServices with their instances. `version` is this
/// program's, as of common/version.h.
std::vector<Finding> Diagnose(const Evidence& evidence, const std::string& version, TimePoint now);

/// The fields of a ModelService that this program knows and the CustomResourceDefinition does not,
/// "spec.fastStart.state" for example: it is of an older release, and the API server drops them.
std::vector<std::string> FieldsMissingFrom(const Json& crd);

std::string DoctorText(const std::vector<Finding>& findings, const Screen& screen);
Json ToJson(const std::vector<Finding>& findings);
int ErrorsIn(const std::vector<Finding>& findings);

}  // namespace rouse::kubectl
