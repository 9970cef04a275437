// The Kubernetes Service of a ModelService: how requests get to its replicas. Pure.

#pragma once

#include <string>

#include "operator/api/model_service.h"

namespace rouse::plan {

using json::Json;

/// Where clients ask, whatever port the engine has.
inline constexpr int kServicePort = 80;

/// A Kubernetes Service as far as decisions depend on it.
struct Endpoint {
  std::string uid;
  std::string owner_uid;  ///< Of the controlling owner.
  Json selector;
  Json ports;

  bool operator==(const Endpoint&) const = default;
};

/// Reads a Service; what is of an unexpected type reads as not there.
Endpoint EndpointFromService(const Json& service);

/// The complete Service: the ModelService's name, its replicas, kServicePort.
Json RenderEndpoint(const api::ModelService& service);

/// Whether requests get where RenderEndpoint would send them, whatever else was added to it.
bool IsAsRendered(const Endpoint& endpoint, const api::ModelService& service);

}  // namespace rouse::plan
