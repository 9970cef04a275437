#include "agent/server/lease.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

Result<http::Response> Post(http::Client& client, const std::string& target, const json::Json& body,
                            milliseconds timeout) {
  ROUSE_ASSIGN_OR_RETURN(http::Response answer,
                         client.Send({.method = "POST",
                                      .target = target,
                                      .headers = {{"Content-Type", "application/json"}},
                                      .body = json::Dump(body),
                                      .timeout = timeout,
                                      .deadline = timeout},
                                     64u << 10));
  if (answer.status != 200) return http::ToStatus(answer, "POST " + target);
  return answer;
}

Status PostLease(http::Client& client, const std::string& target, const std::string& lease,
                 milliseconds timeout) {
  return Post(client, target, ToJson(LeaseRequest{.lease = lease}), timeout).status();
}

}  // namespace

Result<std::unique_ptr<Lease>> Lease::Open(std::unique_ptr<http::Client> client,
                                           const OpenRequest& request, milliseconds timeout) {
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         client->Send({.method = "POST",
                                       .target = "/v1/weights/open",
                                       .headers = {{"Content-Type", "application/json"}},
                                       .body = json::Dump(ToJson(request)),
                                       .timeout = timeout}));
  if (answer.status != 200) return http::ToStatus(answer, "open weights of a peer");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "opened weights"));
  ROUSE_ASSIGN_OR_RETURN(OpenResponse opened, OpenResponseFromJson(document));
  return std::unique_ptr<Lease>(new Lease(std::move(client), std::move(opened)));
}

void Lease::KeepAlive(std::function<void(const Status&)> on_lost) {
  renewer_ = std::jthread([this, on_lost = std::move(on_lost)](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "lease");
    const milliseconds duration(opened_.lease_ms);
    std::mutex mutex;
    std::condition_variable_any changed;
    Clock::time_point good_until = Clock::now() + duration;
    while (true) {
      {
        std::unique_lock lock(mutex);
        changed.wait_for(lock, stop, duration / 3, [] { return false; });
      }
      if (stop.stop_requested()) return;
      const Clock::time_point asked = Clock::now();
      const Status status =
          PostLease(*client_, "/v1/weights/renew", opened_.lease,
                    std::min(duration / 3 + milliseconds(1), milliseconds(5'000)));
      if (status.ok()) {
        good_until = asked + duration;
      } else if (status.code() == StatusCode::kNotFound || Clock::now() >= good_until) {
        on_lost(status);
        return;
      }
    }
  });
}

Lease::~Lease() {
  if (renewer_.joinable()) {
    renewer_.request_stop();
    renewer_.join();
  }
  const Status closed =
      PostLease(*client_, "/v1/weights/close", opened_.lease, milliseconds(1'000));
  if (!closed.ok())
    log::Debug("lease not closed, it ends by itself", {{"error", closed.message()}});
}

Result<RemoteSlab> Stage(http::Client& client, const StageRequest& request, milliseconds timeout) {
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         Post(client, "/v1/weights/stage", ToJson(request), timeout));
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "staged weights"));
  return StagedFromJson(document);
}

}  // namespace rouse::agent
