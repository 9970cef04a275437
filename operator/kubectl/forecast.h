// `kubectl rouse preview`: what the operator would do at another number of replicas. Pure.
//
// The operator's own planner is run again and again over the observed state: what it decides is
// taken to be done, and to succeed, and then it is asked again, until it has nothing more to do.

#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "operator/kubectl/text.h"
#include "operator/plan/observed.h"
#include "operator/plan/planner.h"

namespace rouse::kubectl {

using api::TimePoint;
using json::Json;

struct ForecastStep {
  /// What it waits for after the step before, beside that all of that is done.
  std::chrono::milliseconds wait{0};
  std::vector<plan::Action> actions;
};

struct Forecast {
  std::string service;  ///< "namespace/name"
  int replicas = 0;
  int replicas_now = 0;
  std::vector<ForecastStep> steps;
  bool settles = false;  ///< False: it was still doing something after so many steps.
  api::ServiceStatus end;
  std::map<std::string, double> last_seconds;  ///< Of the last start, by path; of those known.
};

Forecast MakeForecast(plan::Observed observed, int replicas, TimePoint now);

std::string ForecastText(const Forecast& forecast, const Screen& screen);
Json ToJson(const Forecast& forecast);

}  // namespace rouse::kubectl
