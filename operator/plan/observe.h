// What the planner is told, out of objects as the API server or kubectl give them. Pure.

#pragma once

#include <vector>

#include "operator/plan/action.h"
#include "operator/plan/observed.h"

namespace rouse::plan {

/// `objects` are the Pods, Services and Nodes that may matter, of anybody, each with its kind (one
/// without is a Pod); others are left out. Without Nodes none is lost. The policy is the default.
/// InvalidArgument when the ModelService cannot be read.
Result<Observed> ObservedFromObjects(const Json& service, const std::vector<Json>& objects);

/// What there is of an instance just created, before the scheduler has seen its pod. Without a uid.
Instance JustCreated(const CreateInstance& action, const api::ObjectMeta& service);

}  // namespace rouse::plan
