// What is told to an operator of HTTP answers, and what is made of them.

#include "agent/server/reporter.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <mutex>
#include <thread>

#include "common/tests/eventually.h"

namespace rouse::agent {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kRarely = 3'600'000;

/// Keeps what it is told, and leaves out keepers for whoever has them.
class ListeningOperator {
 public:
  ListeningOperator() {
    auto server = http::Server::Listen(
        "127.0.0.1", 0, [this](const http::Request& request) { return Handle(request); });
    REQUIRE(server.ok());
    server_ = *std::move(server);
  }

  std::unique_ptr<http::Client> Client() const {
    auto client = http::Client::Create("http://127.0.0.1:" + std::to_string(server_->port()));
    REQUIRE(client.ok());
    return *std::move(client);
  }
  std::vector<AgentReport> Heard() const {
    const std::lock_guard lock(mutex_);
    return heard_;
  }
  bool Hears(AgentState state, int reports) const {
    return test::Eventually([&] {
      const auto heard = Heard();
      return static_cast<int>(heard.size()) >= reports && heard.back().state == state;
    });
  }

 private:
  http::Response Handle(const http::Request& request) {
    const auto body = json::Parse(request.body, "report");
    const auto report = body.ok() ? AgentReportFromJson(*body) : body.status();
    if (!report.ok()) return http::ErrorResponse(report.status());
    const std::lock_guard lock(mutex_);
    heard_.push_back(*report);
    Assignment answer{.report_after_ms = kRarely, .keepers_digest = "1"};
    if (report->keepers_digest != "1") answer.keepers = {{.pod = "a", .node = "n"}};
    return http::JsonResponse(json::Dump(ToJson(answer)));
  }

  mutable std::mutex mutex_;
  std::vector<AgentReport> heard_;  ///< Guarded by mutex_.
  std::unique_ptr<http::Server> server_;
};

/// An agent that is in the state that it is set to.
struct Told {
  Told() { REQUIRE(op.Hears(AgentState::kAsleep, 1)); }

  ListeningOperator op;
  std::atomic<AgentState> state{AgentState::kAsleep};
  Reporter reporter{op.Client(),
                    {.begin = [](const std::stop_token&) {},
                     .make =
                         [this] {
                           AgentReport report;
                           report.pod = "demo-0";
                           report.state = state;
                           return report;
                         },
                     .on_sent = [](const Status&) {}}};

  void Become(AgentState now) {
    state = now;
    reporter.Changed();
  }
  void BecomeAndTell(AgentState now, int reports) {
    Become(now);
    REQUIRE(op.Hears(now, reports));
  }
};

}  // namespace

TEST_CASE("a wake that is soon over is told when it is") {
  Told told;
  told.Become(AgentState::kWaking);
  std::this_thread::sleep_for(50ms);  // Whatever else has changed would have been told by now.
  told.BecomeAndTell(AgentState::kServing, 2);
  CHECK(told.op.Heard().size() == 2);
}

TEST_CASE("a wake that takes its time is told, once, and what it comes to") {
  Told told;
  told.BecomeAndTell(AgentState::kWaking, 2);
  told.BecomeAndTell(AgentState::kFailed, 3);
  CHECK(told.op.Heard().size() == 3);
}

TEST_CASE("who keeps caches is known on from the first answer, and asked for once") {
  Told told;
  told.BecomeAndTell(AgentState::kServing, 2);
  CHECK(told.op.Heard()[0].keepers_digest.empty());
  CHECK(told.op.Heard()[1].keepers_digest == "1");
  told.BecomeAndTell(AgentState::kAsleep, 3);  // The answer to the second has been read then.
  const auto live = told.reporter.keepers();
  REQUIRE(live);
  CHECK(live->keepers == std::vector<Keeper>{{.pod = "a", .node = "n"}});
}

}  // namespace rouse::agent
