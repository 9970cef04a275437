#include "agent/server/canary.h"

#include "agent/server/clock.h"
#include "common/json.h"

namespace rouse::agent {
namespace {

constexpr int kTokens = 4;
constexpr std::size_t kMaxTold = 200;
constexpr std::string_view kData = "data: ";

}  // namespace

// Streamed, so that the moment of the first token is known.
Result<Canary::Answer> Canary::Ask() {
  const json::Json body = {{"model", served_model_}, {"prompt", "The sun rises in the"},
                           {"max_tokens", kTokens},  {"temperature", 0},
                           {"ignore_eos", true},     {"stream", true}};
  Answer answer;
  bool whole = false;
  http::Response refused;
  const auto on_line = [&](std::string_view line) -> Status {
    if (!line.starts_with(kData)) return {};  // Between two events.
    line.remove_prefix(kData.size());
    if (line.starts_with("[DONE]")) {
      whole = true;
      return {};
    }
    ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(line, "canary's answer"));
    json::Reader in(document, "canary");
    for (const json::Json& item : in.Array("choices")) {
      json::Reader choice(item, "canary.choices");
      answer.text += choice.String("text");
      in.Take(choice.status());
      if (answer.first_token_us == 0) answer.first_token_us = NowUs();
    }
    return in.status();
  };
  const Status streamed = engine_->Stream({.method = "POST",
                                           .target = "/v1/completions",
                                           .headers = {{"Content-Type", "application/json"}},
                                           .body = json::Dump(body),
                                           .timeout = timeout_},
                                          http::CancelSource(), on_line, &refused);
  if (streamed.code() == StatusCode::kFailedPrecondition) {
    return Unavailable("the engine answered with HTTP " + std::to_string(refused.status) + ": " +
                       refused.body.substr(0, 512));
  }
  ROUSE_RETURN_IF_ERROR(streamed);
  if (!whole || answer.first_token_us == 0) return Unavailable("the engine's answer is not whole");
  return answer;
}

Status Canary::Record() {
  ROUSE_ASSIGN_OR_RETURN(Answer answer, Ask());
  const std::scoped_lock lock(mutex_);
  answer_ = std::move(answer.text);
  return {};
}

bool Canary::known() const {
  const std::scoped_lock lock(mutex_);
  return answer_.has_value();
}

CanaryResult Canary::Check() {
  const auto answer = Ask();
  if (!answer.ok()) return {.status = answer.status()};
  const std::scoped_lock lock(mutex_);
  CanaryResult result{.status = {}, .first_token_us = answer->first_token_us};
  if (!answer_) answer_ = answer->text;
  if (answer->text != *answer_) {
    result.status =
        DataLoss("the engine answers \"" + answer->text.substr(0, kMaxTold) +
                 "\", before it slept it answered \"" + answer_->substr(0, kMaxTold) + "\"");
  }
  return result;
}

}  // namespace rouse::agent
