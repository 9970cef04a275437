#include "agent/server/canary.h"

#include "agent/server/clock.h"
#include "common/json.h"

namespace rouse::agent {
namespace {

constexpr int kTokens = 4;
constexpr std::size_t kMaxTold = 200;

}  // namespace

Result<std::string> Canary::Ask() {
  const json::Json body = {{"model", served_model_},
                           {"prompt", "The sun rises in the"},
                           {"max_tokens", kTokens},
                           {"temperature", 0},
                           {"ignore_eos", true}};
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         engine_->Send({.method = "POST",
                                        .target = "/v1/completions",
                                        .headers = {{"Content-Type", "application/json"}},
                                        .body = json::Dump(body),
                                        .timeout = timeout_,
                                        .deadline = timeout_},
                                       1u << 20));
  if (answer.status != 200) {
    return Unavailable("the engine answered with HTTP " + std::to_string(answer.status) + ": " +
                       answer.body.substr(0, 512));
  }
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "canary's answer"));
  json::Reader in(document, "canary");
  const json::Json& choices = in.Array("choices");
  if (in.status().ok() && choices.empty()) in.Fail("choices", "is empty");
  ROUSE_RETURN_IF_ERROR(in.status());
  json::Reader choice(choices.front(), "canary.choices[0]");
  std::string text = choice.String("text");
  ROUSE_RETURN_IF_ERROR(choice.status());
  return text;
}

Status Canary::Record() {
  ROUSE_ASSIGN_OR_RETURN(std::string answer, Ask());
  const std::scoped_lock lock(mutex_);
  answer_ = std::move(answer);
  return {};
}

bool Canary::known() const {
  const std::scoped_lock lock(mutex_);
  return answer_.has_value();
}

CanaryResult Canary::Check() {
  const auto answer = Ask();
  if (!answer.ok()) return {.status = answer.status()};
  const std::int64_t now = NowUs();
  const std::scoped_lock lock(mutex_);
  if (*answer == answer_) return {.status = {}, .first_token_us = now};
  return {.status = DataLoss("the engine answers \"" + answer->substr(0, kMaxTold) +
                             "\", before it slept it answered \"" +
                             answer_.value_or("").substr(0, kMaxTold) + "\""),
          .first_token_us = now};
}

}  // namespace rouse::agent
