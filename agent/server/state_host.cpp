// The agent's part in reusing compile caches: what StateReuse needs of it, and what peers ask for.

#include "agent/server/agent.h"
#include "agent/server/clock.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

/// "Matched/0123…" as a class and a fingerprint.
Result<std::pair<CacheClass, std::string>> ReadName(const std::string& name) {
  const std::size_t slash = name.find('/');
  if (slash != std::string::npos) {
    for (const auto& [of, spelled] : kCacheClasses) {
      if (spelled == name.substr(0, slash)) return std::pair(of, name.substr(slash + 1));
    }
  }
  return NotFound("nothing is at /v1/state/" + name.substr(0, 128));
}

}  // namespace

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
       .dial =
           [this](const Sibling& sibling) {
             return ToPeer({.pod = sibling.pod, .address = sibling.address});
           },
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
  if (what == "read") {
    const auto document = json::Parse(request.body, "request");
    const auto read = document.ok() ? StateReadFromJson(*document) : document.status();
    auto bytes = read.ok() ? state_->Read(*read) : read.status();
    if (!bytes.ok()) return http::ErrorResponse(bytes.status());
    return {.status = 200,
            .headers = {{"Content-Type", "application/octet-stream"}},
            .body = *std::move(bytes)};
  }
  const auto name = ReadName(what);
  if (!name.ok()) return http::ErrorResponse(name.status());
  StateAnswer answer = state_->Answer(name->first, name->second);
  if (answer.standing == StateStanding::kCompiling ||
      answer.standing == StateStanding::kHydrating) {
    const std::scoped_lock lock(mutex_);
    if (machine_.failed()) answer.standing = StateStanding::kNone;
  }
  return http::JsonResponse(json::Dump(ToJson(answer)));
}

}  // namespace rouse::agent
