#include "operator/actuate/load_relay.h"

#include <pthread.h>

#include <utility>

#include "common/log.h"
#include "common/protocol.h"

namespace rouse::actuate {
namespace {

constexpr std::chrono::milliseconds kTimeout{2'000};
/// What could not be passed on is tried again after this long...
constexpr std::chrono::milliseconds kRetry{200};
/// ...until it is this old: the leader takes what comes for new.
constexpr std::chrono::milliseconds kKept{5'000};

PodLoad ReadPodLoad(json::Reader& in) {
  PodLoad out{.ns = in.String("namespace"),
              .pod = in.String("pod"),
              .uid = in.String("podUid"),
              .load = std::nullopt};
  if (!in.status().ok() || !in.Has("load")) return out;
  const auto load = EngineLoadFromJson(in.Object("load"), in.Path("load"));
  in.Take(load.status());
  if (load.ok()) out.load = *load;
  return out;
}

}  // namespace

json::Json ToJson(const std::vector<PodLoad>& loads) {
  json::Json out = Envelope(kLoadsProtocol, kLoadsVersion);
  out["loads"] = json::Json::array();
  for (const PodLoad& each : loads) {
    out["loads"].push_back({{"namespace", each.ns},
                            {"pod", each.pod},
                            {"podUid", each.uid},
                            {"load", each.load ? ToJson(*each.load) : json::Json()}});
  }
  return out;
}

Result<std::vector<PodLoad>> PodLoadsFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kLoadsProtocol, kLoadsVersion));
  auto loads = in.Objects("loads", kMaxPodLoads, ReadPodLoad);
  ROUSE_RETURN_IF_ERROR(in.status());
  return loads;
}

LoadRelay::LoadRelay(std::function<std::string()> leader,
                     std::shared_ptr<const tls::CredentialStore> credentials)
    : leader_(std::move(leader)), credentials_(std::move(credentials)) {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "load-relay");
    Run(stop);
  });
}

LoadRelay::~LoadRelay() = default;

void LoadRelay::Add(PodLoad load) {
  std::lock_guard lock(mutex_);
  std::string uid = load.uid;
  waiting_.insert_or_assign(std::move(uid),
                            Waiting{std::move(load), std::chrono::steady_clock::now()});
  changed_.notify_all();
}

std::vector<LoadRelay::Waiting> LoadRelay::Take() {
  std::vector<Waiting> out;
  while (!waiting_.empty() && out.size() < kMaxPodLoads) {
    out.push_back(std::move(waiting_.extract(waiting_.begin()).mapped()));
  }
  return out;
}

void LoadRelay::Run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    std::vector<Waiting> loads;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [this] { return !waiting_.empty(); })) return;
      loads = Take();
    }
    const std::string url = leader_();
    const Status sent = url.empty() ? Unavailable("no leader is known") : Send(url, loads);
    if (!url.empty() && !sent.ok() && sent.message() != last_error_) {
      log::Warning("load not passed on to the leader", {{"error", sent.ToString()}});
    }
    last_error_ = sent.message();
    if (sent.ok()) continue;

    std::unique_lock lock(mutex_);
    const auto oldest = std::chrono::steady_clock::now() - kKept;
    for (Waiting& each : loads) {
      std::string uid = each.load.uid;
      if (each.since > oldest) waiting_.emplace(std::move(uid), std::move(each));  // Unless newer.
    }
    changed_.wait_for(lock, stop, kRetry, [] { return false; });
  }
}

Status LoadRelay::Send(const std::string& url, const std::vector<Waiting>& loads) {
  if (url != url_ || client_ == nullptr) {
    ROUSE_ASSIGN_OR_RETURN(
        client_, http::Client::Create(
                     url, http::MutualTls{.credentials = credentials_, .peer = tls::Operator()}));
    url_ = url;
  }
  std::vector<PodLoad> message;
  for (const Waiting& each : loads) message.push_back(each.load);
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         client_->Send({.method = "POST",
                                        .target = "/v1/operators/loads",
                                        .headers = {{"Content-Type", "application/json"}},
                                        .body = json::Dump(ToJson(message)),
                                        .timeout = kTimeout,
                                        .deadline = kTimeout},
                                       1u << 20));
  return http::ToStatus(answer, "POST " + url + "/v1/operators/loads");
}

}  // namespace rouse::actuate
