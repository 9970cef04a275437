#include "agent/server/role_driver.h"

#include <pthread.h>

#include <utility>

#include "agent/server/clock.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// For what holds an arena a moment longer than its owner.
constexpr std::chrono::seconds kFreeDeadline{10};

}  // namespace

RoleDriver::RoleDriver(const RoleSettings& settings, WeightStore& store, Commands& commands,
                       RoleHooks hooks)
    : settings_(settings),
      store_(store),
      commands_(commands),
      hooks_(std::move(hooks)),
      machine_(settings.limits),
      thread_([this](const std::stop_token& stop) {
        pthread_setname_np(pthread_self(), "role");
        Run(stop);
      }) {}

RoleDriver::~RoleDriver() {
  Stop();
}

void RoleDriver::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
  pull_.request_stop();
  if (pull_.joinable()) pull_.join();
}

// Everything that may move the machine goes through here.
void RoleDriver::Change(const std::function<void()>& change) {
  RoleState before = RoleState::kActive;
  RoleState after = RoleState::kActive;
  Clock::time_point asked;
  {
    const std::scoped_lock lock(mutex_);
    before = machine_.state();
    asked = asked_;
    change();
    after = machine_.state();
    if (after != before) asked_ = Clock::now();
    pending_ = true;
    changed_.notify_all();
  }
  if (after != before && (before == RoleState::kSleeping || before == RoleState::kWaking)) {
    hooks_.on_ended(before, after, std::chrono::duration<double>(Clock::now() - asked).count());
  }
  hooks_.on_change();
}

Status RoleDriver::Ask(const RoleRequest& request) {
  const bool wakes = request.role == Role::kActive;
  const std::int64_t asked = WakeBegan(request.decided_at_us, NowUs());
  const Status ready = wakes ? hooks_.ready_to_wake() : hooks_.ready_to_sleep();
  Status status;
  Change([&] {
    status = wakes ? machine_.Wake(request.peers, ready, Clock::now(), asked)
                   : machine_.Sleep(ready, Clock::now());
  });
  return status;
}

void RoleDriver::Apply(const RoleEvent& happened) {
  Change([&] { machine_.Apply(happened); });
}

void RoleDriver::AddLane(const std::string& name, std::int64_t start_us, std::int64_t end_us) {
  const std::scoped_lock lock(mutex_);
  machine_.AddLane(name, start_us, end_us);
}

void RoleDriver::FailAtOnce(const std::string& why) {
  Change([&] { machine_.FailAtOnce(why); });
}

RoleStanding RoleDriver::standing() const {
  const std::scoped_lock lock(mutex_);
  return machine_.standing();
}

void RoleDriver::Run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    const std::vector<RoleAction> actions = machine_.TakeActions();
    if (!actions.empty()) {
      lock.unlock();
      for (const RoleAction action : actions) Perform(action, stop);
      lock.lock();
      continue;
    }
    const auto is_pending = [&] { return pending_; };
    if (const auto deadline = machine_.deadline()) {
      changed_.wait_until(lock, stop, *deadline, is_pending);
    } else {
      changed_.wait(lock, stop, is_pending);
    }
    pending_ = false;
    if (!machine_.deadline() || Clock::now() < *machine_.deadline()) continue;
    lock.unlock();
    Change([&] { machine_.Tick(Clock::now()); });
    lock.lock();
  }
}

void RoleDriver::Perform(RoleAction action, const std::stop_token& stop) {
  switch (action) {
    case RoleAction::kEndLeases: {
      const Status begun = store_.BeginSleep();
      if (begun.ok()) store_.EndLeases(settings_.leases, stop);
      return Apply(role_event::LeasesEnded{begun});
    }
    case RoleAction::kRecordCanary:
      return hooks_.record_canary();
    case RoleAction::kSleepEngine:
      return Command(CommandKind::kSleep, settings_.drain);
    case RoleAction::kFreeWeights:
      return Apply(role_event::WeightsFreed{store_.Free(kFreeDeadline)});
    case RoleAction::kWakeEngine:
      store_.BeginWake();
      return Command(CommandKind::kWake, std::chrono::milliseconds(0));
    case RoleAction::kPull: {
      std::vector<Peer> peers;
      {
        const std::scoped_lock lock(mutex_);
        peers = machine_.peers();
      }
      pull_ = std::jthread([this, peers = std::move(peers)](const std::stop_token& stopped) {
        pthread_setname_np(pthread_self(), "wake-pull");
        Apply(role_event::PullEnded{hooks_.pull(peers, stopped)});
      });
      return;
    }
    case RoleAction::kAskCanary: {
      const CanaryResult answer = hooks_.ask_canary();
      if (answer.status.ok()) store_.EndRest();
      Apply(role_event::CanaryAnswered{answer.status, answer.first_token_us});
      return hooks_.on_weights();
    }
    case RoleAction::kGiveUp: {
      const Status why = Unavailable(standing().message);
      commands_.Abandon(why);
      pull_.request_stop();
      store_.Abandon(why.message());
      return hooks_.on_weights();
    }
  }
}

void RoleDriver::Command(CommandKind kind, std::chrono::milliseconds limit) {
  const auto ended = [this, kind](const CommandOutcome& outcome) {
    if (outcome.status.ok()) {
      hooks_.on_done(kind, outcome.values);
    } else {
      log::Warning("command failed", {{"error", outcome.status.ToString()}});
    }
    Apply(role_event::CommandEnded{outcome.status, NowUs()});
  };
  const Status begun = commands_.Begin(kind, limit, ended);
  if (!begun.ok()) Apply(role_event::CommandEnded{begun, NowUs()});
}

}  // namespace rouse::agent
