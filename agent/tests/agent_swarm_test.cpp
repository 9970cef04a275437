// Many agents that pull from one source and from each other: real processes, UCX over loopback.

#include <signal.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/mid_pull.h"
#include "common/seeded.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Sanitizers make an agent several times as expensive.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kTargets = 8;
#else
constexpr int kTargets = 32;
#endif
constexpr std::size_t kArenaBytes = (24u << 20) + 512;
// Not all of it comes in the moments that a held source gives.
constexpr std::size_t kLongArenaBytes = (64u << 20) + 512;
constexpr std::uint64_t kChunk = 256u << 10;
constexpr std::uint64_t kSeed = 20260101;
constexpr milliseconds kLongest{600'000};

// So many processes on few cores are slow to answer; none is dead until it is killed.
const std::map<std::string, std::string> kPatient = {{"ROUSE_HTTP_THREADS", "2"},
                                                     {"ROUSE_PULL_STALL_SECONDS", "60"},
                                                     {"ROUSE_LEASE_SECONDS", "120"},
                                                     {"ROUSE_PEER_DEADLINE_SECONDS", "300"}};

std::map<std::string, std::string> FromPeer() {
  auto variables = kPatient;
  variables["ROUSE_PATH"] = "Peer";
  variables["ROUSE_WEIGHTS_FALLBACK"] = "None";
  return variables;
}

void PublishOn(const AgentProcess& agent, const FakeOperator& fake_operator, const std::string& pod,
               const std::string& bytes) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, bytes, kChunk)->type() == "Ok");
  REQUIRE(fake_operator.WaitForServable(pod));
}

bool Arriving(const FakeOperator& fake_operator, const std::string& pod) {
  const auto report = fake_operator.Last(pod);
  return report && report->weights && report->weights->arriving;
}

bool Servable(const FakeOperator& fake_operator, const std::string& pod) {
  const auto report = fake_operator.Last(pod);
  return report && report->weights && report->weights->servable;
}

/// What the agent's log says that it got from each peer, by pod.
std::map<std::string, std::uint64_t> BytesByPeer(const AgentProcess& agent) {
  std::map<std::string, std::uint64_t> bytes;
  std::istringstream lines(agent.log());
  for (std::string line; std::getline(lines, line);) {
    const auto entry = json::Json::parse(line, nullptr, false);
    if (!entry.is_object() || entry.value("message", "") != "source of the pull") continue;
    const std::string peer = entry["peer"];
    bytes[peer.substr(0, peer.find(' '))] += entry["verifiedBytes"].get<std::uint64_t>();
  }
  return bytes;
}

void CheckBytes(const AgentProcess& agent, const std::string& pod, const std::string& bytes) {
  INFO(pod);
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  const auto got = engine->AwaitAndRead(0, 120'000);
  INFO(got.status().ToString());
  REQUIRE(got.ok());
  CHECK((*got == bytes));  // in brackets: nobody wants to see them
}

}  // namespace

TEST_CASE("A target pulls from one that still pulls itself") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kLongArenaBytes, 1);
  AgentProcess source("demo-0", fake_operator.url(), kPatient);
  PublishOn(source, fake_operator, "demo-0", bytes);
  const auto peer = [&](const std::string& pod, bool partial) {
    return Peer{.pod = pod,
                .node = "node-a",
                .address = fake_operator.Last(pod)->address,
                .partial = partial};
  };
  fake_operator.NamePeers({peer("demo-0", false)});
  auto held = std::make_unique<HeldSource>(source);
  const auto relay = StartMidPull(fake_operator, *held, "demo-1", FromPeer(), kLongArenaBytes);
  REQUIRE(Eventually([&] { return Arriving(fake_operator, "demo-1"); }, kLongest));
  // The only peer that the second hears of.
  fake_operator.NamePeers({peer("demo-1", true)});
  AgentProcess second("demo-2", fake_operator.url(), FromPeer());
  REQUIRE(Eventually([&] { return Arriving(fake_operator, "demo-2"); }, kLongest));
  // It has begun while the relay had not finished.
  REQUIRE_FALSE(Servable(fake_operator, "demo-1"));
  held.reset();
  for (const auto& [agent, pod] :
       {std::pair(relay.get(), "demo-1"), std::pair(&second, "demo-2")}) {
    REQUIRE(Eventually([&] { return Servable(fake_operator, pod); }, kLongest));
    CheckBytes(*agent, pod, bytes);
  }
  CHECK(BytesByPeer(second) ==
        std::map<std::string, std::uint64_t>{{"demo-1", std::uint64_t{kLongArenaBytes}}});
}

TEST_CASE("Of many agents that pull from one source, all that are not killed get the right bytes") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kArenaBytes, 2);
  AgentProcess source("demo-0", fake_operator.url(), kPatient);
  PublishOn(source, fake_operator, "demo-0", bytes);
  auto slow = std::make_unique<SlowSource>(source, milliseconds(100), milliseconds(5));

  const auto started = Clock::now();
  std::map<std::string, std::unique_ptr<AgentProcess>> targets;
  for (int i = 1; i <= kTargets; ++i) {
    const std::string pod = "demo-" + std::to_string(i);
    targets[pod] = std::make_unique<AgentProcess>(pod, fake_operator.url(), FromPeer());
  }
  std::vector<std::string> victims;
  for (const auto& [pod, agent] : targets) victims.push_back(pod);
  Shuffle(victims, kSeed);
  victims.resize(kTargets / 4);

  std::minstd_rand random(kSeed);
  std::optional<Clock::time_point> first_arriving;
  std::size_t killed = 0;
  const bool all = Eventually(
      [&] {
        bool done = true;
        for (auto it = targets.begin(); it != targets.end();) {
          const auto& [pod, agent] = *it;
          const bool arriving = Arriving(fake_operator, pod);
          if (arriving && !first_arriving) first_arriving = Clock::now();
          const bool victim = std::find(victims.begin(), victims.end(), pod) != victims.end();
          if (victim && arriving && random() % 16 == 0) {
            const std::string name = pod;
            it = targets.erase(it);  // Kills it.
            fake_operator.Forget(name);
            ++killed;
            continue;
          }
          done = done && Servable(fake_operator, pod);
          ++it;
        }
        return done;
      },
      kLongest);
  const auto ended = Clock::now();
  slow.reset();
  for (const auto& [pod, agent] : targets) {
    INFO(pod << ": " << agent->log());
    REQUIRE(Servable(fake_operator, pod));
  }
  REQUIRE(all);
  REQUIRE(killed > 0);
  std::map<std::string, std::uint64_t> sent;
  for (const auto& [pod, agent] : targets) {
    CheckBytes(*agent, pod, bytes);
    for (const auto& [peer, count] : BytesByPeer(*agent)) sent[peer] += count;
  }

  const auto seconds = [](auto duration) {
    return std::chrono::duration<double>(duration).count();
  };
  std::uint64_t relayed = 0;
  std::cout << kTargets << " agents, one source, " << kArenaBytes << " bytes: " << killed
            << " killed in mid-pull, " << targets.size() << " have the right bytes after "
            << seconds(ended - *first_arriving) << " s (" << seconds(ended - started)
            << " s from their start)\nsent to the survivors, in arenas:";
  for (const auto& [peer, count] : sent) {
    std::cout << " " << peer << " " << static_cast<double>(count * 100 / kArenaBytes) / 100;
    if (peer != "demo-0") relayed += count;
  }
  std::cout << std::endl;
  CHECK(relayed > 0);
  CHECK(relayed + sent["demo-0"] == targets.size() * kArenaBytes);
}

namespace {

/// Seconds until the last of `count` agents has what one source has, where every agent sends at a
/// bounded rate.
double SecondsToLast(int count) {
  FakeOperator fake_operator;
  fake_operator.NamePeers({});
  const std::string bytes = TestBytes(kArenaBytes, 3);
  std::map<std::string, std::unique_ptr<AgentProcess>> agents;
  const auto start = [&](const std::string& pod, const auto& variables) {
    agents[pod] = std::make_unique<AgentProcess>(pod, fake_operator.url(), variables);
  };
  start("demo-0", kPatient);
  PublishOn(*agents["demo-0"], fake_operator, "demo-0", bytes);
  for (int i = 1; i <= count; ++i) start("demo-" + std::to_string(i), FromPeer());
  std::vector<std::unique_ptr<SlowSource>> slow;
  for (const auto& [pod, agent] : agents) {
    REQUIRE(Eventually([&, name = pod] { return fake_operator.Last(name).has_value(); }, kLongest));
    slow.push_back(std::make_unique<SlowSource>(*agent, milliseconds(79), milliseconds(1)));
  }
  const auto started = Clock::now();
  fake_operator.NameAll();
  REQUIRE(Eventually(
      [&] {
        return std::all_of(agents.begin(), agents.end(),
                           [&](const auto& entry) { return Servable(fake_operator, entry.first); });
      },
      kLongest));
  return std::chrono::duration<double>(Clock::now() - started).count();
}

}  // namespace

// Not a test: what bench/fanout_agents.py runs and compares with the simulator.
TEST_CASE("Times of one pull and of many, as one line of JSON", "[.][model]") {
  const double one = SecondsToLast(1);
  const double many = SecondsToLast(kTargets);
  std::cout << json::Dump({{"arenaBytes", kArenaBytes},
                           {"chunkBytes", kChunk},
                           {"targets", kTargets},
                           {"oneSeconds", one},
                           {"lastSeconds", many}})
            << std::endl;
}
