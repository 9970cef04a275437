#include "agent/tests/sleeping_engine.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "common/tests/unwatched.h"

namespace rouse::agent {
namespace {

FakeEngine Attached(const std::string& socket) {
  auto core = FakeEngine::Connect(socket);
  if (!core.ok()) throw std::runtime_error(core.status().ToString());
  const auto answer = core->Attach();
  if (!answer.ok() || answer->type() != "Attached") throw std::runtime_error("not attached");
  return *std::move(core);
}

Status Must(const Result<EngineAnswer>& answer, const std::string& type) {
  if (!answer.ok()) return answer.status();
  if (answer->type() == type) return {};
  return Internal("expected " + type + ", got " + answer->body.dump());
}

}  // namespace

SleepingEngine::SleepingEngine(const std::string& socket, FakeEngine rank,
                               std::vector<OwnedFd> slabs)
    : rank_(std::move(rank)),
      core_(Attached(socket)),
      slabs_(std::move(slabs)),
      thread_([this](const std::stop_token& stop) { Run(stop); }) {}

SleepingEngine::~SleepingEngine() {
  Die();
}

void SleepingEngine::Die() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
  core_.Close();
  rank_.Close();
  slabs_.clear();
}

std::string SleepingEngine::bytes() const {
  const std::scoped_lock lock(mutex_);
  return bytes_;
}

std::string SleepingEngine::error() const {
  const std::scoped_lock lock(mutex_);
  return error_;
}

void SleepingEngine::Run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const auto command = core_.AwaitCommand(50);
    if (!command.ok()) return;
    if (command->type() == "Command") Obey(command->body, stop);
  }
}

void SleepingEngine::Obey(const json::Json& command, const std::stop_token& stop) {
  const std::int64_t id = command["id"];
  if (command["command"] == "CaptureGraphs") {
    const int captured = std::min(3, graphs_left_.load());
    graphs_left_ -= captured;
    ++captures_;
    static_cast<void>(
        core_
            .CommandDone(id,
                         {{"captured", captured}, {"left", graphs_left_.load()}, {"seconds", 0}})
            .ok());
    return;
  }
  const bool sleeps = command["command"] == "Sleep";
  switch (manner_) {
    case Manner::kFails:
      static_cast<void>(core_.CommandFailed(id, "out of memory").ok());
      return;
    case Manner::kHangs:
      while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    case Manner::kDies:
      core_.Close();
      rank_.Close();
      return;
    case Manner::kKeeps:
      static_cast<void>(core_.CommandDone(id).ok());
      return;
    case Manner::kDrains:
      if (sleeps) std::this_thread::sleep_for(std::chrono::milliseconds(command["drainMs"]));
      break;
    case Manner::kAsTold:
      break;
  }
  const Status done = sleeps ? Sleep() : Wake(stop);
  if (!done.ok()) {
    {
      const std::scoped_lock lock(mutex_);
      error_ = done.message();
    }
    static_cast<void>(core_.CommandFailed(id, done.message()).ok());
    return;
  }
  ++(sleeps ? sleeps_ : wakes_);
  const json::Json values =
      sleeps ? json::Json{{"gpuUsedBytes", 123}, {"kvBytes", 7}, {"seconds", 0.01}}
             : json::Json{{"mapSeconds", 0.001}, {"kvSeconds", 0.002}, {"seconds", 0.01}};
  static_cast<void>(core_.CommandDone(id, values).ok());
}

Status SleepingEngine::Sleep() {
  slabs_.clear();
  return Must(rank_.Ask({{"type", "ReleaseArena"}, {"rank", 0}}), "Ok");
}

Status SleepingEngine::Wake(const std::stop_token& stop) {
  Result<EngineAnswer> arena = Unavailable("not asked");
  do {
    arena = rank_.Ask({{"type", "AwaitArena"}, {"rank", 0}, {"timeoutMs", 100}});
  } while (arena.ok() && arena->type() == "Pending" && !stop.stop_requested());
  ROUSE_RETURN_IF_ERROR(Must(arena, "Arena"));
  const auto sizes = arena->body["slabBytes"].get<std::vector<std::size_t>>();
  ROUSE_ASSIGN_OR_RETURN(slabs_, rank_.AllSlabs(0, sizes.size()));
  const auto weights = rank_.Ask({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 20'000}});
  ROUSE_RETURN_IF_ERROR(Must(weights, "Weights"));
  std::string bytes;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Unwatched unwatched;
    std::string part(sizes[i], '\0');
    if (::pread(slabs_[i].get(), part.data(), part.size(), 0) !=
        static_cast<ssize_t>(part.size())) {
      return Internal("a slab is not as large as the arena said");
    }
    bytes += part;
  }
  const std::scoped_lock lock(mutex_);
  bytes_ = std::move(bytes);
  return {};
}

}  // namespace rouse::agent
