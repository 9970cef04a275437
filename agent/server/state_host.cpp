// The agent's part in reusing compile caches: what StateReuse needs of it, and what peers ask for.

#include "agent/server/agent.h"
#include "agent/server/clock.h"
#include "agent/server/state_routes.h"
#include "common/log.h"

namespace rouse::agent {

void Agent::WireState() {
  if (options_.state.folder.empty()) return;
  const std::int64_t began_us = NowUs();
  auto created = StateReuse::Create(
      options_.state, metrics_,
      {.siblings = [this]() -> std::optional<std::vector<Sibling>> {
         // Without an operator nobody says who else there is.
         if (reporter_ == nullptr) return std::vector<Sibling>();
         return reporter_->siblings();
       },
       .keepers = [this]() -> std::optional<LiveKeepers> {
         if (reporter_ == nullptr) return std::nullopt;
         return reporter_->keepers();
       },
       .dial = [this](
                   const std::string& pod,
                   const std::string& address) { return ToPeer({.pod = pod, .address = address}); },
       .on_settled = [this, began_us](const Status& may) { OnStateSettled(may, began_us); },
       .on_change =
           [this] {
             if (reporter_ != nullptr) reporter_->Changed();
           }});
  if (created.ok()) {
    state_ = *std::move(created);
    return;
  }
  log::Error("compile caches are not reused", {{"error", created.status().ToString()}});
  if (options_.state.required) Apply(event::Failure{created.status().message()});
}

void Agent::BeginState() {
  if (state_ != nullptr) state_->Begin(!began_again_);
  if (options_.plan.reuse_state && (state_ == nullptr || began_again_)) {
    Apply(event::StateSettled{NowUs()});
  }
}

void Agent::OnStateSettled(const Status& may_start, std::int64_t began_us) {
  if (!may_start.ok()) {
    Apply(event::Failure{may_start.message()});
    return NotifyWeights();
  }
  const std::int64_t now = NowUs();
  {
    const std::scoped_lock lock(mutex_);
    if (state_->installed()) machine_.AddLane({"Caches", began_us, now});
  }
  Apply(event::StateSettled{now});
  NotifyWeights();
}

void Agent::OnCacheUse(const CacheUseRequest& use) {
  if (state_ != nullptr) state_->OnCacheUse(use);
}

http::Response Agent::HandleState(const http::Request& request, const std::string& what) {
  if (state_ == nullptr) {
    return http::ErrorResponse(NotFound("this agent keeps no compile caches"));
  }
  bool failed = false;
  {
    const std::scoped_lock lock(mutex_);
    failed = machine_.failed();
  }
  return AnswerAboutState(*state_, request, what, options_.self.pod_namespace, failed);
}

}  // namespace rouse::agent
