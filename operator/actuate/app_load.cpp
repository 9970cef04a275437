// The load of engines, as the operator hears it of agents and of other operators, and tells KEDA.

#include "common/log.h"
#include "operator/actuate/app.h"

namespace rouse::actuate {

Status App::StartScaler() {
  if (options_.scaler_port == 0) return {};
  auto server = scaler::Server::Start(
      {.host = options_.listen_host,
       .port = options_.scaler_port,
       .on_answered = [this](const auto& method,
                             const auto& code) { metrics_->ScalerAnswered(method, code); }},
      [this](const std::string& key) { return LookAtLoad(key); });
  if (!server.ok()) return server.status().WithContext("the endpoint for KEDA");
  log::Info("answering KEDA", {{"port", (*server)->port()}});
  std::lock_guard lock(scaler_mutex_);
  scaler_ = *std::move(server);
  return {};
}

void App::StopScaler() {
  std::unique_ptr<scaler::Server> ended;
  std::lock_guard lock(scaler_mutex_);
  ended.swap(scaler_);
}

void App::LoadChanged(const std::string& key) {
  std::lock_guard lock(scaler_mutex_);
  if (scaler_ != nullptr) scaler_->Changed(key);
}

// What was told to whoever does not lead is kept there too: it may lead soon.
void App::TakeLoad(const PodLoad& load) {
  const auto pod = cache_.Pod(kube::ObjectName{load.ns, load.pod}.Key());
  if (!pod || pod->uid != load.uid) return;
  loads_.Put(load.uid, {.load = load.load,
                        .at = std::chrono::steady_clock::now(),
                        .kept = plan::LoadKept(cache_.pod_count())});
  if (Leading()) {
    LoadChanged(ServiceKey(*pod));
  } else {
    relay_->Add(load);
  }
}

http::Response App::TakeLoads(const http::Request& request) {
  if (!request.peer || request.peer->kind != tls::Identity::Kind::kOperator) {
    return http::ErrorResponse(PermissionDenied("only another operator may say what loads are"));
  }
  if (!Leading()) return http::ErrorResponse(Unavailable("this operator does not lead"));
  const auto body = json::Parse(request.body, "loads", 1u << 20);
  const auto loads = body.ok() ? PodLoadsFromJson(*body) : body.status();
  if (!loads.ok()) return http::ErrorResponse(loads.status());
  for (const PodLoad& load : *loads) TakeLoad(load);
  return http::JsonResponse("{}");
}

Result<plan::ServiceLoad> App::LookAtLoad(const std::string& key) const {
  if (!Leading()) return Unavailable("this operator does not lead any more");
  const auto stored = cache_.Service(key);
  if (!stored) return NotFound("there is no ModelService " + key);
  if (!stored->error.ok()) {
    return Unavailable("ModelService " + key + " cannot be read: " + stored->error.message());
  }
  return plan::LoadOf(
      stored->service, cache_.PodsOf(key),
      [this](const std::string& uid) { return loads_.Get(uid); }, std::chrono::steady_clock::now());
}

}  // namespace rouse::actuate
