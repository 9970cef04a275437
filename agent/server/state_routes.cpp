#include "agent/server/state_routes.h"

#include "agent/trust/access.h"

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

http::Response AnswerRead(const StateReuse& state, const std::string& body) {
  const auto document = json::Parse(body, "request");
  const auto read = document.ok() ? StateReadFromJson(*document) : document.status();
  auto bytes = read.ok() ? state.Read(*read) : read.status();
  if (!bytes.ok()) return http::ErrorResponse(bytes.status());
  return {.status = 200,
          .headers = {{"Content-Type", "application/octet-stream"}},
          .body = *std::move(bytes)};
}

Result<KeepAnswer> Keep(StateReuse& state, const http::Request& request,
                        const std::string& own_namespace) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(request.body, "request"));
  ROUSE_ASSIGN_OR_RETURN(const KeepRequest offer, KeepRequestFromJson(document));
  ROUSE_RETURN_IF_ERROR(CheckRequester(own_namespace + "/" + offer.pod, request.peer));
  return state.Keep(offer);
}

}  // namespace

http::Response AnswerAboutState(StateReuse& state, const http::Request& request,
                                const std::string& what, const std::string& own_namespace,
                                bool failed) {
  if (what == "read") return AnswerRead(state, request.body);
  if (what == "keep") {
    const auto kept = Keep(state, request, own_namespace);
    if (!kept.ok()) return http::ErrorResponse(kept.status());
    return http::JsonResponse(json::Dump(ToJson(*kept)));
  }
  const auto name = ReadName(what);
  if (!name.ok()) return http::ErrorResponse(name.status());
  StateAnswer answer = state.Answer(name->first, name->second);
  if (failed && answer.standing != StateStanding::kHeld) answer.standing = StateStanding::kNone;
  return http::JsonResponse(json::Dump(ToJson(answer)));
}

}  // namespace rouse::agent
