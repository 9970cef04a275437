// What kubectl-rouse knows of one ModelService: the object and its pods, decoded. Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/api/model_service.h"
#include "operator/plan/instance.h"

namespace rouse::kubectl {

using api::TimePoint;
using json::Json;

struct ServiceView {
  api::ModelService service;
  /// Why the operator cannot read the spec; ok when it can. metadata and status are there in both
  /// cases.
  Status unreadable;
  std::vector<plan::Instance> instances;  ///< Its own pods, in the order of their ordinals.
  std::vector<std::string> others;        ///< Pods with its label that belong to somebody else.

  std::string Name() const { return service.metadata.ns + "/" + service.metadata.name; }
};

/// `pods` may hold any pods; those of other ModelServices are left out.
Result<ServiceView> MakeView(const Json& service, const std::vector<Json>& pods);

/// "2 of 3 instances serve".
std::string ServeText(int ready, int wanted);

/// What an instance is at, in one word: "Serving", "Asleep", "Unschedulable", ...
std::string StateOf(const plan::Instance& instance);

/// What a user should know of an instance beside that; empty when there is nothing.
std::string NoteOf(const plan::Instance& instance);

/// What its agent has reported under this annotation; empty when it has not.
std::string Reported(const plan::Instance& instance, const char* annotation);

/// Whether it has failed for all that its pod and its agent tell.
bool HasFailed(const plan::Instance& instance);

/// A condition that is not as it should be: what it says, and whether it is a failure.
struct Concern {
  bool failure = false;
  std::string type;
  std::string reason;
  std::string message;
};

/// In the order of the conditions. Also what no condition tells: a spec that the operator has not
/// seen or cannot read.
std::vector<Concern> ConcernsOf(const ServiceView& view);

}  // namespace rouse::kubectl
