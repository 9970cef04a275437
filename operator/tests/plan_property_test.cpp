// Properties of the planner over simulated clusters: random spec changes, failures, deletions by
// hand, sources that come and go, crashes after any action, and observations in any order.

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "operator/api/launch_identity.h"
#include "operator/plan/observe.h"
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

bool IsClaimedAndSleepsOn(const Instance& instance) {
  return instance.role == Role::kActive && instance.path == StartPath::kWake &&
         instance.agent_state == AgentState::kAsleep;
}

// A cluster of one ModelService that behaves as API server, kubelet and agents would.
class Simulation {
 public:
  explicit Simulation(std::uint64_t seed) : random_(seed), now_(kNow) {
    observed_.service = Service(Pick(0, 4));
    if (Pick(0, 1) == 1) observed_.service.spec.fast_start.weights_fallback = api::Fallback::kNone;
    observed_.service.status = {};
    observed_.service.spec.guard_replicas = std::max(0, Pick(-2, 2));
    observed_.service.spec.max_surge = Pick(0, 2);
    observed_.service.spec.max_unavailable = Pick(observed_.service.spec.max_surge == 0 ? 1 : 0, 2);
    observed_.policy.start_deadline = seconds(300);
  }

  Observed Look() {
    Observed shuffled = observed_;
    std::shuffle(shuffled.instances.begin(), shuffled.instances.end(), random_);
    return shuffled;
  }

  /// By the operator's clock, which may be wrong for a while.
  TimePoint now() const { return now_ + wrong_by_; }
  const Observed& observed() const { return observed_; }
  int desired() const { return observed_.service.spec.replicas; }
  int guards() const { return observed_.service.spec.guard_replicas; }

  std::vector<const Instance*> Working(Role role = Role::kActive) const {
    std::vector<const Instance*> out;
    for (const Instance& i : observed_.instances) {
      if (i.role == role && !i.deleting && !i.leaving && !i.node_lost &&
          FailureOf(i, observed_.policy, now()).empty()) {
        out.push_back(&i);
      }
    }
    return out;
  }
  int Asleep() const {
    const auto guards = Working(Role::kGuard);
    return static_cast<int>(std::count_if(guards.begin(), guards.end(), [](const Instance* i) {
      return i->agent_state == AgentState::kAsleep && !i->ready;
    }));
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
    if (count >= plan.actions.size()) return;
    // It dies between a guard's command and its claim.
    const auto* claim = std::get_if<ClaimGuard>(&plan.actions[count]);
    if (claim == nullptr || !claim->wake || !agents_answer_ || Pick(0, 1) == 0) return;
    Instance* guard = Find(claim->uid);
    if (guard->agent_state == AgentState::kAsleep) guard->agent_state = AgentState::kWaking;
  }
  void Publish(const Plan& plan) { observed_.service.status = plan.status; }

  // Time passes; the world may do something to us. `kind`: see the switch.
  void Step(bool calm) {
    now_ += milliseconds(Pick(1, 4000));
    if (calm) {
      agents_answer_ = true;
      lost_node_.clear();
      wrong_by_ = {};
    }
    Progress();
    if (calm) return;
    switch (Pick(0, 20)) {
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
      case 9:
        Edit([&](api::Spec& s) { s.guard_replicas = Pick(0, 3); });
        break;
      case 10:
        agents_answer_ = !agents_answer_;
        break;
      case 12:
        observed_.endpoint.reset();
        break;
      case 13:
        Edit([&](api::Spec& s) { s.engine.port = Pick(8000, 8001); });
        break;
      case 14:
        lost_node_ = "node-" + std::to_string(Pick(0, 2));
        break;
      case 15:
        lost_node_.clear();
        break;
      case 16:
        wrong_by_ = seconds(Pick(-7200, 7200));
        break;
      case 17:
        wrong_by_ = {};
        break;
      case 11:  // A claim's command that was lost.
        Any([&](Instance& i) {
          if (i.agent_state == AgentState::kWaking) i.agent_state = AgentState::kAsleep;
        });
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
    Instance i = JustCreated(action, observed_.service.metadata);
    i.uid = "uid-" + std::to_string(++created_);
    observed_.instances.push_back(std::move(i));
  }

  Instance* Find(const std::string& uid) {
    for (Instance& i : observed_.instances) {
      if (i.uid == uid) return &i;
    }
    return nullptr;
  }

  void Do(const ClaimGuard& action) {
    Instance* guard = Find(action.uid);
    REQUIRE(guard != nullptr);
    REQUIRE_FALSE(guard->node_lost);
    REQUIRE((guard->role == Role::kGuard || IsClaimedAndSleepsOn(*guard)));
    REQUIRE_FALSE(guard->deleting);
    if (!agents_answer_ && action.wake) {
      guard->role = Role::kGuard;
      guard->failed_wakes = {
          .count = action.failed_wakes.count + 1, .at = now(), .reason = "no answer"};
      return;
    }
    guard->role = Role::kActive;
    guard->decided_at = action.decided_at;
    guard->path_reason = action.reason;
    if (action.wake) guard->path = StartPath::kWake;
    if (guard->agent_state == AgentState::kAsleep) {
      REQUIRE(action.wake);
      REQUIRE(std::any_of(action.peers.begin(), action.peers.end(),
                          [](const Peer& peer) { return !peer.partial; }));
      guard->agent_state = AgentState::kWaking;
    }
  }
  void Do(const ReleaseGuard& action) {
    Instance* guard = Find(action.uid);
    REQUIRE(guard != nullptr);
    guard->role = Role::kGuard;
    guard->failed_wakes = action.failed_wakes;
  }
  void Do(const MakeGuard& action) { Find(action.uid)->role = Role::kGuard; }
  void Do(const PutToSleep& action) {
    Instance* guard = Find(action.uid);
    REQUIRE(guard->role == Role::kGuard);
    REQUIRE_FALSE(guard->ready);
    if (agents_answer_ && Pick(0, 3) != 0) guard->agent_state = AgentState::kSleeping;
  }
  void Do(const SetServing& action) {
    Instance* instance = Find(action.uid);
    if (action.may_serve) REQUIRE(instance->role == Role::kActive);
    instance->may_serve = action.may_serve;
  }
  void Do(const Leave& action) {
    Instance* instance = Find(action.uid);
    REQUIRE_FALSE(instance->leaving.has_value());
    instance->leaving = action.leaving;
  }

  void Do(const EnsureEndpoint& action) {
    REQUIRE(action.exists == observed_.endpoint.has_value());
    observed_.endpoint = EndpointOf(observed_.service);
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

  // False: not yet, or never.
  bool ProgressGuard(Instance& i) {
    if (i.agent_state == AgentState::kSleeping) {
      if (Pick(0, 1) == 0) {
        i.agent_state = AgentState::kAsleep;
        i.weights.reset();
      }
      return true;
    }
    if (i.agent_state == AgentState::kWaking) {
      if (!SourceFor(i)) {
        if (Pick(0, 3) == 0) i.agent_state = AgentState::kFailed;
      } else if (Pick(0, 1) == 0) {
        i.agent_state = AgentState::kServing;
        i.weights = WeightsReport{.servable = true};
        const auto total = std::max<std::int64_t>(0, (now_ - i.decided_at).count());
        i.timeline = Timeline{.path = StartPath::kWake,
                              .decided_at_us = api::ToMicros(i.decided_at),
                              .phases = {{"Command", 0, total}},
                              .lanes = {},
                              .total_us = total};
      }
      return true;
    }
    return i.agent_state == AgentState::kAsleep;
  }

  void Progress() {
    std::vector<std::string> gone;
    for (Instance& i : observed_.instances) {
      i.node_lost = !i.node.empty() && i.node == lost_node_;
      if (i.node_lost) {  // Nothing is heard of it, and it counts as not ready.
        i.ready = false;
        continue;
      }
      // The kubelet.
      if (!i.may_serve || i.agent_state != AgentState::kServing) i.ready = false;
      if (i.deleting) {
        if (Pick(0, 2) == 0) gone.push_back(i.uid);
        continue;
      }
      if (i.phase == "Failed" || i.agent_state == AgentState::kFailed) continue;
      if (ProgressGuard(i)) continue;
      if (i.node.empty()) {
        i.node = "node-" + std::to_string(Pick(0, 2));
        if (i.node == lost_node_) i.node = "node-3";
        i.phase = "Running";
        i.started_at = now_;
        i.agent_state = AgentState::kReady;
        i.address = "https://x:7411";
        continue;
      }
      if (i.begins_without && !i.weights) {
        REQUIRE(i.role == Role::kGuard);  // Claimed, it would serve without weights.
        if (Pick(0, 1) == 0) i.agent_state = AgentState::kSleeping;
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
      if (i.agent_state != AgentState::kServing || !i.ready) {
        i.agent_state = AgentState::kServing;
        i.ready = i.may_serve;
        if (!i.timeline) {
          const auto total = std::max<std::int64_t>(0, (now_ - i.decided_at).count());
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
  bool agents_answer_ = true;
  seconds wrong_by_{0};
  std::string lost_node_;  ///< Empty: none is.
};

int Creates(const Plan& plan, Role role) {
  return static_cast<int>(
      std::count_if(plan.actions.begin(), plan.actions.end(), [&](const Action& a) {
        const auto* create = std::get_if<CreateInstance>(&a);
        return create != nullptr && create->role == role;
      }));
}

// What a plan takes away: of replicas alone.
struct Losses {
  int scale_in = 0;          ///< Too many, or made guards.
  int healthy = 0;           ///< Not failed.
  int outdated_serving = 0;  ///< Serving, of another revision.
};

void CheckPlan(const Simulation& before, const Observed& seen, const Plan& plan) {
  std::set<std::string> names, claimed, gone;
  Losses losses;
  const auto find = [&](const std::string& uid) -> const Instance& {
    for (const Instance& i : seen.instances) {
      if (i.uid == uid) return i;
    }
    FAIL("no instance " << uid);
    throw std::logic_error("not reached");
  };
  const auto lose = [&](const std::string& uid, Cause cause) {
    REQUIRE(gone.insert(uid).second);
    const Instance& i = find(uid);
    // Nobody is killed who may serve where we do not see it.
    REQUIRE((!i.node_lost || i.leaving || cause == Cause::kFailed));
    // Whoever was told to leave before is not lost now.
    if (i.role != Role::kActive || i.leaving) return;
    losses.scale_in += cause == Cause::kScaleIn;
    losses.healthy += cause != Cause::kFailed;
    losses.outdated_serving += i.ready && cause == Cause::kOutdated;
    // Whoever may be sent requests leaves the endpoints first.
    if (i.ready && cause != Cause::kFailed) REQUIRE(i.gated);
  };
  for (const Action& action : plan.actions) {
    if (const auto* create = std::get_if<CreateInstance>(&action)) {
      REQUIRE(names.insert(create->pod).second);
      REQUIRE_FALSE(create->path_reason.empty());
    } else if (const auto* del = std::get_if<DeleteInstance>(&action)) {
      lose(del->uid, del->cause);
      const Instance& i = find(del->uid);
      if (i.ready && del->cause != Cause::kFailed) REQUIRE(i.leaving.has_value());
    } else if (const auto* leave = std::get_if<Leave>(&action)) {
      lose(leave->uid, leave->leaving.cause);
    } else if (const auto* guard = std::get_if<MakeGuard>(&action)) {
      lose(guard->uid, Cause::kScaleIn);
    } else if (const auto* release = std::get_if<ReleaseGuard>(&action)) {
      REQUIRE_FALSE(find(release->uid).ready);
      lose(release->uid, Cause::kFailed);
    } else if (const auto* claim = std::get_if<ClaimGuard>(&action)) {
      const Instance& told = find(claim->uid);
      if (IsClaimedAndSleepsOn(told)) continue;  // It is told again.
      REQUIRE(claimed.insert(claim->uid).second);
      REQUIRE(told.role == Role::kGuard);
    } else if (const auto* serving = std::get_if<SetServing>(&action)) {
      // Never a guard in an endpoint.
      if (serving->may_serve) REQUIRE(find(serving->uid).role == Role::kActive);
    }
  }
  for (const std::string& uid : claimed) REQUIRE_FALSE(gone.contains(uid));
  const int working = static_cast<int>(before.Working().size());
  const int more = Creates(plan, Role::kActive) + static_cast<int>(claimed.size());
  // Never too many because of a plan, and never takes away more than is too many.
  const api::Spec& spec = seen.service.spec;
  const int most = before.desired() + spec.max_surge;
  REQUIRE(working - losses.healthy + more <= std::max(most, working - losses.healthy));
  REQUIRE(losses.scale_in <= std::max(0, working - before.desired()));
  // Guards are made after replicas, never instead of them, and never too many.
  const int guards = static_cast<int>(before.Working(Role::kGuard).size());
  if (const int created = Creates(plan, Role::kGuard); created > 0) {
    REQUIRE(working - losses.healthy + more >= before.desired());
    REQUIRE(created <= before.guards());
    REQUIRE(guards - static_cast<int>(claimed.size()) <
            before.guards() + static_cast<int>(gone.size()));
  }
  // A change of the spec never leaves fewer serving than it may.
  if (losses.outdated_serving > 0) {
    REQUIRE(before.Serving() - losses.outdated_serving >= before.desired() - spec.max_unavailable);
  }
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
      const bool settled =
          world.Serving() == world.desired() && world.Asleep() == world.guards() &&
          static_cast<int>(world.observed().instances.size()) == world.desired() + world.guards();
      quiet = plan.actions.empty() && settled ? quiet + 1 : 0;
    }
    INFO("serving " << world.Serving() << " of " << world.desired() << ", asleep " << world.Asleep()
                    << " of " << world.guards() << ", " << world.observed().instances.size()
                    << " pods");
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
