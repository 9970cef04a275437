// What a trigger of a KEDA ScaledObject asks for. Pure.

#pragma once

#include <map>
#include <string>

#include "common/result.h"

namespace rouse::scaler {

/// As KEDA names it with each request.
struct ScaledObject {
  std::string name;
  std::string ns;
  std::map<std::string, std::string> metadata;  ///< Of the trigger.
};

struct Trigger {
  std::string key;          ///< "ns/name" of the ModelService, whose namespace is the object's.
  double load_per_replica;  ///< Positive.
  double activation = 0;    ///< Active when the load is over it.

  bool operator==(const Trigger&) const = default;
};

/// The one metric that there is.
inline constexpr char kMetricName[] = "rouse-load";

/// InvalidArgument that names the field and says what to write. A key that is neither ours nor
/// KEDA's own is refused too: it would be a typing error that nobody sees.
Result<Trigger> TriggerOf(const ScaledObject& object);

/// InvalidArgument when `metric` is not kMetricName.
Status CheckMetricName(const std::string& metric);

}  // namespace rouse::scaler
