#include "agent/server/canary.h"

#include <algorithm>
#include <thread>

#include "agent/server/clock.h"
#include "common/json.h"

namespace rouse::agent {
namespace {

constexpr int kTokens = 4;
constexpr int kTimesToRecord = 3;
constexpr int kTimesToCheck = 5;
/// Before a check's second question; twice as long before each further one.
constexpr std::chrono::milliseconds kPause{20};
constexpr std::size_t kMaxAnswers = 8;
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

bool Canary::Given(const std::string& answer) const {
  const std::scoped_lock lock(mutex_);
  return std::ranges::find(answers_, answer) != answers_.end();
}

void Canary::Keep(std::string answer) {
  const std::scoped_lock lock(mutex_);
  answers_.push_back(std::move(answer));
  if (answers_.size() > kMaxAnswers) answers_.pop_front();
}

Status Canary::Record() {
  for (int asked = 0; asked < kTimesToRecord; ++asked) {
    ROUSE_ASSIGN_OR_RETURN(Answer answer, Ask());
    if (Given(answer.text)) break;
    Keep(std::move(answer.text));
  }
  return {};
}

bool Canary::known() const {
  const std::scoped_lock lock(mutex_);
  return !answers_.empty();
}

Status Canary::Another(const std::string& answer) const {
  const auto quoted = [](const std::string& text) {
    return "\"" + text.substr(0, kMaxTold) + "\"";
  };
  std::string before;
  const std::scoped_lock lock(mutex_);
  for (const std::string& given : answers_) {
    before += (before.empty() ? "" : " or ") + quoted(given);
  }
  return DataLoss("the engine answers " + quoted(answer) + ", before it slept it answered " +
                  before);
}

CanaryResult Canary::Check() {
  auto pause = kPause;
  for (int asked = 1;; ++asked, pause *= 2) {
    const auto answer = Ask();
    if (!answer.ok()) return {.status = answer.status()};
    if (!known()) Keep(answer->text);
    if (Given(answer->text)) {
      return {.status = {}, .first_token_us = answer->first_token_us};
    }
    if (asked == kTimesToCheck) return {.status = Another(answer->text)};
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace rouse::agent
