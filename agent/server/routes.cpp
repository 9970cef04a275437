// The agent's HTTP ports: probes and metrics; what the operator says, and what peers ask for.

#include "agent/server/agent.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

constexpr std::string_view kWeightsPrefix = "/v1/weights/";
constexpr std::string_view kFilesPrefix = "/v1/files/";
constexpr std::string_view kStatePrefix = "/v1/state/";

http::Response Text(int status, std::string body) {
  return {.status = status,
          .headers = {{"Content-Type", "text/plain; charset=utf-8"}},
          .body = body + "\n"};
}

http::Response WrongMethod(const http::Request& request, const std::string& allowed) {
  http::Response answer = http::ErrorResponse(InvalidArgument(
      "method " + request.method.substr(0, 16) + " is not answered here, only " + allowed));
  answer.status = 405;
  answer.headers["Allow"] = allowed;
  return answer;
}

Result<LeaseRequest> ReadLease(const std::string& body) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(body, "request"));
  return LeaseRequestFromJson(document);
}

Result<OpenRequest> ReadOpen(const std::string& body) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(body, "request"));
  return OpenRequestFromJson(document);
}

Result<StageRequest> ReadStage(const std::string& body) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(body, "request"));
  return StageRequestFromJson(document);
}

}  // namespace

http::Response Agent::Handle(Port port, const http::Request& request) {
  if (!up_) return http::ErrorResponse(Unavailable("the agent is starting or ending"));
  const std::string path = request.target.substr(0, request.target.find_first_of("?#"));
  const Status may = MayAsk(port, path, request.peer, options_.self.pod_namespace);
  if (!may.ok()) return http::ErrorResponse(may);
  if (path.starts_with(kWeightsPrefix)) {
    if (request.method != "POST") return WrongMethod(request, "POST");
    return HandleWeights(path.substr(kWeightsPrefix.size()), request);
  }
  if (path == "/v1/role") {
    if (request.method != "POST") return WrongMethod(request, "POST");
    return HandleRole(request.body);
  }
  if (path == "/v1/state/read" || path == "/v1/state/keep") {
    if (request.method != "POST") return WrongMethod(request, "POST");
    return HandleState(request, path.substr(kStatePrefix.size()));
  }
  if (request.method != "GET") return WrongMethod(request, "GET");
  if (path.starts_with(kStatePrefix)) return HandleState(request, path.substr(kStatePrefix.size()));
  if (path == "/startupz" || path == "/healthz" || path == "/readyz") return HandleProbe(path);
  if (path == "/metrics") return HandleMetrics();
  if (path == "/v1/files") return HandleFiles("");
  if (path.starts_with(kFilesPrefix)) return HandleFiles(path.substr(kFilesPrefix.size()));
  return http::ErrorResponse(NotFound("nothing is at " + path.substr(0, 128)));
}

http::Response Agent::HandleProbe(const std::string& path) {
  if (path == "/healthz") return Text(200, "ok");
  const std::scoped_lock lock(mutex_);
  const Standing now = StandingNow();
  const bool good =
      path == "/readyz" ? now.state == AgentState::kServing : machine_.engine_may_start();
  std::string text(ToString(now.state));
  if (!now.message.empty()) text += ": " + now.message;
  if (certifier_ != nullptr) {
    const std::string waits = certifier_->waiting_for();
    if (!waits.empty()) text += "; it has no certificate yet: " + waits;
  }
  return Text(good ? 200 : 503, text);
}

http::Response Agent::HandleMetrics() {
  metrics_.SetWeights(store_->published_bytes(), store_->pulled_bytes(), store_->lease_count());
  return {.status = 200,
          .headers = {{"Content-Type", "text/plain; version=0.0.4; charset=utf-8"}},
          .body = metrics_.Text()};
}

http::Response Agent::HandleOpen(const http::Request& asked) {
  const auto request = ReadOpen(asked.body);
  if (!request.ok()) return http::ErrorResponse(request.status());
  if (const Status is = CheckRequester(request->requester, asked.peer); !is.ok()) {
    return http::ErrorResponse(is);
  }
  Result<OpenResponse> opened =
      request->launch_identity == options_.launch_identity
          ? store_->Open(request->requester, request->partial)
          : FailedPrecondition("this agent serves launch identity " + options_.launch_identity +
                               ", " + request->launch_identity.substr(0, 64) + " was asked for");
  metrics_.CountLease(opened.ok());
  log::Info("peer asks for the weights", {{"peer", request->requester},
                                          {"opened", opened.ok()},
                                          {"error", opened.status().message()}});
  if (!opened.ok()) return http::ErrorResponse(opened.status());
  return http::JsonResponse(json::Dump(ToJson(*opened)));
}

http::Response Agent::HandleWeights(const std::string& action, const http::Request& asked) {
  const std::string& body = asked.body;
  if (action == "open") return HandleOpen(asked);
  if (action == "stage") {
    const auto request = ReadStage(body);
    if (!request.ok()) return http::ErrorResponse(request.status());
    const auto staged = store_->StagePart(*request);
    if (!staged.ok()) return http::ErrorResponse(staged.status());
    return http::JsonResponse(json::Dump(StagedToJson(*staged)));
  }
  if (action != "renew" && action != "close") {
    return http::ErrorResponse(NotFound("nothing is at /v1/weights/" + action.substr(0, 64)));
  }
  const auto lease = ReadLease(body);
  if (!lease.ok()) return http::ErrorResponse(lease.status());
  const Status done = action == "renew" ? store_->Renew(lease->lease) : store_->Close(lease->lease);
  return done.ok() ? http::JsonResponse("{}") : http::ErrorResponse(done);
}

http::Response Agent::HandleFiles(const std::string& digest) {
  if (options_.model_dir.empty())
    return http::ErrorResponse(NotFound("this agent has no model folder"));
  if (!files_in_place_) {
    return http::ErrorResponse(Unavailable("the model's files are not in place yet: ask again"));
  }
  if (digest.empty()) {
    const auto files = files_.List();
    if (!files.ok()) return http::ErrorResponse(files.status());
    return http::JsonResponse(json::Dump(ToJson(*files)));
  }
  auto content = files_.Content(digest);
  if (!content.ok()) return http::ErrorResponse(content.status());
  return {.status = 200,
          .headers = {{"Content-Type", "application/octet-stream"}},
          .body = *std::move(content)};
}

}  // namespace rouse::agent
