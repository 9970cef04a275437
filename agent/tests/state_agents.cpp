#include "agent/tests/state_agents.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <sstream>

#include "agent/server/state_routes.h"
#include "agent/state/fingerprint.h"
#include "agent/tests/state_fixture.h"

namespace rouse::agent {

using std::chrono::milliseconds;

LiveKeepers NamedAgents::Live() const {
  const std::scoped_lock lock(mutex_);
  LiveKeepers live{.keepers = {}, .copies = copies_};
  for (const auto& [pod, keeper] : keepers_) live.keepers.push_back(keeper);
  return live;
}

void NamedAgents::Put(const Keeper& keeper) {
  const std::scoped_lock lock(mutex_);
  keepers_[keeper.pod] = keeper;
}

void NamedAgents::Remove(const std::string& pod) {
  const std::scoped_lock lock(mutex_);
  keepers_.erase(pod);
}

ServingAgent::ServingAgent(NamedAgents& named, const std::string& name, const Options& given)
    : named_(named), name_(name) {
  std::filesystem::create_directories(folder_.path() + "/state");
  WriteCaches(folder_.path() + "/state", name);
  StateReuseOptions options{.folder = folder_.path() + "/state",
                            .store = {.folder = folder_.path() + "/store",
                                      .max_bytes = given.store_bytes,
                                      .owner = "uid-" + name},
                            .engine_identity = "engine-" + name,
                            .launch_identity = "launch-" + name,
                            .pod = name};
  options.settle = milliseconds(20);
  options.keeper.look = milliseconds(200);
  options.keeper.recheck = given.recheck;
  options.keeper.surplus = given.surplus;
  auto created = StateReuse::Create(
      options, metrics_,
      {.siblings = [] { return std::vector<Sibling>(); },
       .keepers = [&named] { return named.Live(); },
       .dial = [](const std::string&,
                  const std::string& address) { return http::Client::Create(address); },
       .on_settled = [](const Status&) {},
       .on_change = [] {}});
  REQUIRE(created.ok());
  state_ = *std::move(created);
  auto server = http::Server::Listen(
      "127.0.0.1", 0,
      [this](const http::Request& request) {
        constexpr std::size_t kPrefix = std::string_view("/v1/state/").size();
        return AnswerAboutState(*state_, request, request.target.substr(kPrefix), "default", false);
      },
      {.threads = 2, .tls = std::nullopt});
  REQUIRE(server.ok());
  server_ = *std::move(server);
  named_.Put(Named(false));
  state_->SetServing(true);
  state_->Begin(true);
}

ServingAgent::~ServingAgent() {
  server_.reset();
  state_->Stop();
}

BundleKey ServingAgent::KeyOf(const std::string& name, CacheClass of) {
  static const Machine machine = ThisMachine({});
  return {of,
          Fingerprint(of, (of == CacheClass::kMatched ? "launch-" : "engine-") + name, machine)};
}

bool ServingAgent::Holds(const BundleKey& key) const {
  return state_->Answer(key.of, key.fingerprint).standing == StateStanding::kHeld;
}

void ServingAgent::Leave() {
  named_.Put(Named(true));
  state_->HandOver(std::chrono::seconds(60));
}

double ServingAgent::Metric(const std::string& line) const {
  std::istringstream lines(metrics_.Text());
  for (std::string one; std::getline(lines, one);) {
    if (one.starts_with(line + " ")) return std::stod(one.substr(line.size() + 1));
  }
  FAIL("no metric " << line);
  return 0;
}

Keeper ServingAgent::Named(bool leaving) const {
  return {.pod = name_,
          .node = "node-of-" + name_,
          .address = "http://127.0.0.1:" + std::to_string(server_->port()),
          .leaving = leaving};
}

}  // namespace rouse::agent
