// The API server over HTTP.
//
// Retries what can be retried without asking: 429 and 5xx with Retry-After (bounded), and once
// after 401 when the token file has a new token. Everything else goes back to the caller, whose
// work queue knows when to try again.

#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/http.h"
#include "operator/kube/api.h"
#include "operator/kube/api_error.h"
#include "operator/kube/config.h"

namespace rouse::kube {

struct ClientOptions {
  std::string user_agent = "rouse-operator";
  std::chrono::milliseconds timeout{30'000};    ///< Longest silence of the server in one call.
  std::chrono::milliseconds deadline{60'000};   ///< For the whole answer to one call, not a watch.
  int retries = 3;                              ///< Of calls that the server asks to repeat.
  std::chrono::milliseconds retry_wait{5'000};  ///< Longest wait before one of them.
  /// Told of each answer: method, HTTP status (0 when there was none), and how long it took (absent
  /// for a watch). For metrics; any thread.
  std::function<void(const std::string& method, int code, std::optional<double> seconds)> on_answer;
};

/// Plain counters for metrics; readable at any time.
struct ClientCounters {
  std::atomic<std::uint64_t> requests{0};
  std::atomic<std::uint64_t> errors{0};     ///< Answers other than 2xx, and no answer.
  std::atomic<std::uint64_t> throttled{0};  ///< Answers 429.
};

/// A page of a list as it came. `error` is filled when the server refused, and left empty when it
/// could not be reached.
struct FetchedPage {
  Result<std::string> text;
  std::optional<ApiError> error;
};

class Client final : public Api {
 public:
  static Result<std::unique_ptr<Client>> Create(const Config& config, ClientOptions options = {});
  ~Client() override;

  Result<Json> Get(const Resource& resource, const ObjectName& name) override;
  Result<ObjectList> List(const Resource& resource, const std::string& ns,
                          const ListOptions& options) override;
  Result<Json> Create(const Resource& resource, const Json& object) override;
  Result<Json> Update(const Resource& resource, const Json& object) override;
  Result<Json> Apply(const Resource& resource, const Json& object,
                     const ApplyOptions& options) override;
  Result<Json> MergePatch(const Resource& resource, const ObjectName& name, const Json& patch,
                          const PatchOptions& options) override;
  Status Delete(const Resource& resource, const ObjectName& name,
                const DeleteOptions& options) override;

  /// The text of one page of a list; not retried. For the informer.
  FetchedPage FetchListPage(const Resource& resource, const std::string& ns,
                            const ListOptions& options, const std::string& continue_token);

  /// One watch, line by line, until it ends; see http::Client::Stream. `error` is filled when
  /// the server refused, and left empty when it could not be reached. The `silence` is how long the
  /// server may send nothing, not even a bookmark. For the informer.
  Status Watch(const Resource& resource, const std::string& ns, const ListOptions& options,
               const std::string& resource_version, std::chrono::seconds timeout,
               std::chrono::milliseconds silence, const http::CancelSource& cancel,
               const std::function<Status(std::string_view)>& on_line,
               std::optional<ApiError>* error);

  /// Makes waits for Retry-After end at once, for shutdown. Calls under way are not cut short.
  void StopWaiting();

  const ClientCounters& counters() const;

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rouse::kube
