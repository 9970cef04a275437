// Properties of the planner over simulated clusters: random spec changes, failures, deletions by
// hand, sources that come and go, crashes after any action, and observations in any order.

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "operator/api/launch_identity.h"
#include "operator/plan/planner.h"
#include "operator/plan/source.h"
#include "operator/tests/seeds.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

// A cluster of one ModelService that behaves as API server, kubelet and agents would.
class Simulation {
 public:
  explicit Simulation(std::uint64_t seed) : random_(seed), now_(kNow) {
    observed_.service = Service(Pick(0, 4));
    if (Pick(0, 1) == 1) observed_.service.spec.fast_start.weights_fallback = api::Fallback::kNone;
    observed_.service.status = {};
    observed_.policy.start_deadline = seconds(300);
  }

  Observed Look() {
    Observed shuffled = observed_;
    std::shuffle(shuffled.instances.begin(), shuffled.instances.end(), random_);
    return shuffled;
  }

  TimePoint now() const { return now_; }
  const Observed& observed() const { return observed_; }
  int desired() const { return observed_.service.spec.replicas; }

  std::vector<const Instance*> Working() const {
    std::vector<const Instance*> out;
    for (const Instance& i : observed_.instances) {
      if (!i.deleting && FailureOf(i, observed_.policy, now_).empty()) out.push_back(&i);
    }
    return out;
  }
  int Serving() const {
    const auto working = Working();
    return static_cast<int>(
        std::count_if(working.begin(), working.end(), [](const Instance* i) { return i->ready; }));
  }

  // Performs the first `count` actions only: the operator may die after any of them.
  void Perform(const Plan& plan, std::size_t count) {
    for (std::size_t i = 0; i < std::min(count, plan.actions.size()); ++i) {
      std::visit([this](const auto& action) { Do(action); }, plan.actions[i]);
    }
  }
  void Publish(const Plan& plan) { observed_.service.status = plan.status; }

  // Time passes; the world may do something to us. `kind`: see the switch.
  void Step(bool calm) {
    now_ += milliseconds(Pick(1, 4000));
    Progress();
    if (calm) return;
    switch (Pick(0, 12)) {
      case 0:
        Edit([&](api::Spec& s) { s.replicas = Pick(0, 6); });
        break;
      case 1:
        Edit([&](api::Spec& s) { s.engine.image = "vllm:" + std::to_string(Pick(1, 3)); });
        break;
      case 2:
        Edit([&](api::Spec& s) { s.pod_template = {{"spec", {{"priority", Pick(1, 3)}}}}; });
        break;
      case 3:
        Any([&](Instance& i) { i.agent_state = AgentState::kFailed; });
        break;
      case 4:
        Any([&](Instance& i) { i.phase = "Failed"; });
        break;
      case 5:
        Any([&](Instance& i) { i.deleting = true; });
        break;
      case 6:
        Any([&](Instance& i) { Erase(i.uid); });
        break;
      case 7:
        Any([&](Instance& i) { i.ready = false; });
        break;
      case 8:
        Any([&](Instance& i) { i.weights.reset(); });
        break;
      default:
        break;
    }
  }

 private:
  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  template <typename F>
  void Edit(F change) {
    change(observed_.service.spec);
    ++observed_.service.metadata.generation;
  }
  template <typename F>
  void Any(F change) {
    if (observed_.instances.empty()) return;
    change(observed_.instances[static_cast<std::size_t>(
        Pick(0, static_cast<int>(observed_.instances.size()) - 1))]);
  }
  void Erase(const std::string uid) {
    std::erase_if(observed_.instances, [&](const Instance& i) { return i.uid == uid; });
  }

  void Do(const CreateInstance& action) {
    for (const Instance& i : observed_.instances) REQUIRE(i.name != action.pod);
    Instance i;
    i.ns = "default";
    i.name = action.pod;
    i.uid = "uid-" + std::to_string(++created_);
    i.service = "demo";
    i.owner_uid = "service-uid";
    i.launch_identity = action.launch_identity;
    i.revision = action.revision;
    i.path = action.path;
    i.path_reason = action.path_reason;
    i.decided_at = action.decided_at;
    i.phase = "Pending";
    observed_.instances.push_back(std::move(i));
  }

  void Do(const DeleteInstance& action) {
    for (Instance& i : observed_.instances) {
      if (i.uid == action.uid) {
        REQUIRE_FALSE(i.deleting);
        i.deleting = true;
      }
    }
  }

  bool SourceFor(const Instance& target) const {
    return std::any_of(observed_.instances.begin(), observed_.instances.end(),
                       [&](const Instance& i) {
                         return i.uid != target.uid &&
                                i.launch_identity == target.launch_identity && IsServable(i);
                       });
  }

  void Progress() {
    std::vector<std::string> gone;
    for (Instance& i : observed_.instances) {
      if (i.deleting) {
        if (Pick(0, 2) == 0) gone.push_back(i.uid);
        continue;
      }
      if (i.phase == "Failed" || i.agent_state == AgentState::kFailed) continue;
      if (i.node.empty()) {
        i.node = "node-" + std::to_string(Pick(0, 2));
        i.phase = "Running";
        i.started_at = now_;
        i.agent_state = AgentState::kReady;
        i.address = "http://x:7410";
        continue;
      }
      if (!i.weights && i.path == StartPath::kPeer && !SourceFor(i)) {
        // Its source is gone: it helps itself, or gives up.
        const bool may_load =
            observed_.service.spec.fast_start.weights_fallback == api::Fallback::kStorage;
        if (now_ - i.decided_at > seconds(20) && !may_load) i.agent_state = AgentState::kFailed;
        if (!may_load) continue;
      }
      if (!i.weights) {
        if (Pick(0, 1) == 0) {
          i.weights = WeightsReport{.servable = true};
          i.agent_state = AgentState::kWarming;
        }
        continue;
      }
      if (!i.ready) {
        i.ready = true;
        i.agent_state = AgentState::kServing;
        if (!i.timeline) {
          const auto total = (now_ - i.decided_at).count();
          i.timeline = Timeline{.path = i.path,
                                .decided_at_us = api::ToMicros(i.decided_at),
                                .phases = {{"Schedule", 0, total}},
                                .lanes = {},
                                .total_us = total};
        }
      }
    }
    for (const std::string& uid : gone) Erase(uid);
  }

  std::mt19937_64 random_;
  TimePoint now_;
  Observed observed_;
  int created_ = 0;
};

std::size_t Creates(const Plan& plan) {
  return static_cast<std::size_t>(
      std::count_if(plan.actions.begin(), plan.actions.end(),
                    [](const Action& a) { return std::holds_alternative<CreateInstance>(a); }));
}

void CheckPlan(const Simulation& before, const Observed& seen, const Plan& plan) {
  std::set<std::string> names, uids;
  int scale_in = 0, outdated_serving = 0, healthy_deleted = 0;
  for (const Action& action : plan.actions) {
    if (const auto* create = std::get_if<CreateInstance>(&action)) {
      REQUIRE(names.insert(create->pod).second);
      REQUIRE_FALSE(create->path_reason.empty());
      continue;
    }
    const auto& del = std::get<DeleteInstance>(action);
    REQUIRE(uids.insert(del.uid).second);
    scale_in += del.cause == DeleteInstance::Cause::kScaleIn;
    healthy_deleted += del.cause != DeleteInstance::Cause::kFailed;
    for (const Instance& i : seen.instances) {
      if (i.uid == del.uid && i.ready && del.cause == DeleteInstance::Cause::kOutdated)
        ++outdated_serving;
    }
  }
  const int working = static_cast<int>(before.Working().size());
  // Never too many because of a plan, and never takes away more than is too many.
  REQUIRE(working - healthy_deleted + static_cast<int>(Creates(plan)) <=
          std::max(before.desired(), working - healthy_deleted));
  REQUIRE(scale_in <= std::max(0, working - before.desired()));
  // A change of the spec takes one serving instance at a time, and only from a full set.
  REQUIRE(outdated_serving <= kMaxUnavailable);
  if (outdated_serving > 0) REQUIRE(before.Serving() == before.desired());
}

}  // namespace

TEST_CASE(
    "every simulated cluster settles at what is wanted, whatever happened and wherever the "
    "operator died",
    "[property]") {
  for (std::uint64_t seed = 1; seed <= Seeds(400); ++seed) {
    INFO("seed " << seed);
    Simulation world(seed);
    std::mt19937_64 random(seed * 7919);
    for (int round = 0; round < 60; ++round) {
      const Observed seen = world.Look();
      const Plan plan = MakePlan(seen, world.now());
      CheckPlan(world, seen, plan);
      const std::size_t performed = random() % (plan.actions.size() + 1);
      world.Perform(plan, performed);
      if (performed == plan.actions.size() && random() % 4 != 0) world.Publish(plan);
      world.Step(/*calm=*/false);
    }
    int quiet = 0;
    int rounds = 0;
    for (; rounds < 1500 && quiet < 5; ++rounds) {
      const Plan plan = MakePlan(world.Look(), world.now());
      world.Perform(plan, plan.actions.size());
      world.Publish(plan);
      world.Step(/*calm=*/true);
      quiet = plan.actions.empty() && world.Serving() == world.desired() &&
                      world.observed().instances.size() == static_cast<std::size_t>(world.desired())
                  ? quiet + 1
                  : 0;
    }
    INFO("serving " << world.Serving() << " of " << world.desired() << ", "
                    << world.observed().instances.size() << " pods");
    REQUIRE(quiet == 5);
    const Plan rest = MakePlan(world.Look(), world.now());
    REQUIRE(rest.actions.empty());
    REQUIRE(api::FindCondition(rest.status.conditions, "Progressing")->status == "False");
    for (const Instance& i : world.observed().instances) {
      REQUIRE(i.revision == api::Revision(world.observed().service.spec));
    }
  }
}

TEST_CASE("a plan does not depend on the order of what was observed", "[property]") {
  for (std::uint64_t seed = 1; seed <= Seeds(200); ++seed) {
    INFO("seed " << seed);
    Simulation world(seed);
    for (int round = 0; round < 20; ++round) {
      const Plan one = MakePlan(world.Look(), world.now());
      const Plan other = MakePlan(world.Look(), world.now());
      REQUIRE(one == other);
      world.Perform(one, one.actions.size());
      world.Publish(one);
      world.Step(/*calm=*/false);
    }
  }
}

TEST_CASE("planning again after the actions repeats none of them", "[property]") {
  for (std::uint64_t seed = 1; seed <= Seeds(200); ++seed) {
    INFO("seed " << seed);
    Simulation world(seed);
    for (int round = 0; round < 20; ++round) {
      const Plan plan = MakePlan(world.Look(), world.now());
      world.Perform(plan, plan.actions.size());
      world.Publish(plan);
      std::set<std::string> created;
      for (const Action& action : plan.actions) {
        if (const auto* create = std::get_if<CreateInstance>(&action)) created.insert(create->pod);
      }
      for (const Action& action : MakePlan(world.Look(), world.now()).actions) {
        if (const auto* create = std::get_if<CreateInstance>(&action)) {
          REQUIRE_FALSE(created.contains(create->pod));
        }
      }
      world.Step(/*calm=*/false);
    }
  }
}

TEST_CASE("a status that says the same is the same, so that it is not written again",
          "[property]") {
  for (std::uint64_t seed = 1; seed <= Seeds(100); ++seed) {
    INFO("seed " << seed);
    Simulation world(seed);
    for (int round = 0; round < 20; ++round) {
      Plan plan = MakePlan(world.Look(), world.now());
      world.Perform(plan, plan.actions.size());
      world.Publish(plan);
      plan = MakePlan(world.Look(), world.now());
      world.Publish(plan);
      const Plan again = MakePlan(world.Look(), world.now());
      if (again.actions.empty() && plan.actions.empty()) {
        REQUIRE(api::ToJson(again.status) == api::ToJson(plan.status));
        REQUIRE(*api::StatusFromJson(api::ToJson(again.status), "") ==
                *api::StatusFromJson(api::ToJson(plan.status), ""));
      }
      world.Step(/*calm=*/false);
    }
  }
}
