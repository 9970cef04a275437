#include "operator/scaler/trigger.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

namespace rouse::scaler {
namespace {

constexpr char kModelService[] = "modelService";
constexpr char kLoadPerReplica[] = "loadPerReplica";
constexpr char kActivationLoad[] = "activationLoad";
constexpr std::array<std::string_view, 3> kOurs = {kModelService, kLoadPerReplica, kActivationLoad};
/// What KEDA itself reads of such a trigger, and passes on with the rest.
constexpr std::array<std::string_view, 4> kKedas = {"scalerAddress", "enableTLS", "unsafeSsl",
                                                    "tlsCertFile"};

/// KEDA rounds targets to thousandths.
constexpr double kLeastTarget = 0.001;
constexpr double kMost = 1e9;
/// Of names of Kubernetes objects.
constexpr std::size_t kMaxName = 253;

std::string Quoted(std::string_view text) {
  constexpr std::size_t kShown = 64;
  return "\"" + std::string(text.substr(0, kShown)) + (text.size() > kShown ? "..." : "") + "\"";
}

Status CheckName(std::string_view what, std::string_view name) {
  const auto fits = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
  };
  if (!name.empty() && name.size() <= kMaxName && std::ranges::all_of(name, fits)) return {};
  return InvalidArgument(std::string(what) + ": " + Quoted(name) +
                         " is not the name of a Kubernetes object");
}

Result<double> Number(std::string_view key, std::string_view text, double least) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && std::isfinite(value) &&
      value >= least && value <= kMost) {
    return value;
  }
  return InvalidArgument(std::string(key) + ": " + Quoted(text) + " is not a number " +
                         (least > 0 ? "over 0" : "of 0 or more") + " (as a string, at most 1e9)");
}

}  // namespace

Result<Trigger> TriggerOf(const ScaledObject& object) {
  for (const auto& [key, value] : object.metadata) {
    if (std::ranges::count(kOurs, key) == 0 && std::ranges::count(kKedas, key) == 0) {
      return InvalidArgument("metadata " + Quoted(key) +
                             ": unknown, expected modelService, loadPerReplica or activationLoad");
    }
  }
  const auto find = [&](const char* key) -> const std::string* {
    const auto it = object.metadata.find(key);
    return it == object.metadata.end() ? nullptr : &it->second;
  };
  ROUSE_RETURN_IF_ERROR(CheckName("the ScaledObject's namespace", object.ns));
  const std::string* named = find(kModelService);
  const std::string& service = named != nullptr ? *named : object.name;
  ROUSE_RETURN_IF_ERROR(CheckName(named != nullptr
                                      ? kModelService
                                      : "modelService, which is the ScaledObject's name by default",
                                  service));
  const std::string* target = find(kLoadPerReplica);
  if (target == nullptr) {
    return InvalidArgument(
        "loadPerReplica: is missing; say how many requests, running and waiting, one replica shall "
        "have, for example \"8\"");
  }
  Trigger out{.key = object.ns + "/" + service, .load_per_replica = 0};
  ROUSE_ASSIGN_OR_RETURN(out.load_per_replica, Number(kLoadPerReplica, *target, kLeastTarget));
  if (const std::string* activation = find(kActivationLoad)) {
    ROUSE_ASSIGN_OR_RETURN(out.activation, Number(kActivationLoad, *activation, 0));
  }
  return out;
}

Status CheckMetricName(const std::string& metric) {
  if (metric == kMetricName) return {};
  return InvalidArgument("metricName: " + Quoted(metric) + " is unknown, there is only \"" +
                         kMetricName + "\"");
}

}  // namespace rouse::scaler
