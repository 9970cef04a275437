#include "agent/tests/mid_pull.h"

#include <catch2/catch.hpp>
#include <thread>

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

constexpr int kAttempts = 10;
constexpr milliseconds kMoment{1};
/// An agent's metrics are at most a tenth of a second old.
constexpr milliseconds kUntilTold{250};

std::uint64_t VerifiedBytes(const FakeOperator& fake_operator, const std::string& pod) {
  const auto report = fake_operator.Last(pod);
  if (!report) return 0;
  const std::string text = MetricsOf(*report);
  const std::string name = "\nrouse_pull_verified_bytes ";
  const auto at = text.find(name);
  if (at == std::string::npos) return 0;
  return static_cast<std::uint64_t>(std::stod(text.substr(at + name.size(), 20)));
}

}  // namespace

std::unique_ptr<AgentProcess> StartMidPull(FakeOperator& fake_operator, const HeldSource& source,
                                           const std::string& pod,
                                           const std::map<std::string, std::string>& environment,
                                           std::uint64_t all) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    auto agent = std::make_unique<AgentProcess>(pod, fake_operator.url(), environment);
    std::uint64_t verified = 0;
    const bool any = Eventually([&] {
      source.LetGoFor(kMoment);
      std::this_thread::sleep_for(kUntilTold);
      verified = VerifiedBytes(fake_operator, pod);
      return verified > 0;
    });
    REQUIRE(any);
    if (verified <= all / 2) return agent;
    agent.reset();
    fake_operator.Forget(pod);
  }
  FAIL("an agent got more than half of its weights at once, ten times");
  return nullptr;
}

}  // namespace rouse::agent
