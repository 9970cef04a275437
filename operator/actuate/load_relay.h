// Agents report to whichever operator the Service leads them to; whoever asks for load is answered
// by the leader. So the others pass on to it what they are told of load (docs/protocols.md §1).
//
// Best effort: what cannot be passed on for 5 s is dropped, since the next report comes soon. One
// thread ("load-relay").

#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/http.h"
#include "common/messages.h"

namespace rouse::actuate {

/// What one report said of load.
struct PodLoad {
  std::string ns;
  std::string pod;
  std::string uid;
  std::optional<EngineLoad> load;  ///< None: the agent does not know.

  bool operator==(const PodLoad&) const = default;
};

inline constexpr std::string_view kLoadsProtocol = "rouse-loads";
inline constexpr int kLoadsVersion = 1;
/// In one message.
inline constexpr std::size_t kMaxPodLoads = 1'024;

json::Json ToJson(const std::vector<PodLoad>& loads);
Result<std::vector<PodLoad>> PodLoadsFromJson(const json::Json& value);

class LoadRelay {
 public:
  /// `leader`: the URL of who leads, "https://10.0.0.7:7482"; empty while there is none. Called on
  /// the relay's thread.
  LoadRelay(std::function<std::string()> leader,
            std::shared_ptr<const tls::CredentialStore> credentials);
  ~LoadRelay();

  /// Passes this on, at once if nothing is under way. Thread-safe, quick.
  void Add(PodLoad load);

 private:
  struct Waiting {
    PodLoad load;
    std::chrono::steady_clock::time_point since;
  };

  void Run(const std::stop_token& stop);
  /// What one message holds; requires mutex_.
  std::vector<Waiting> Take();
  Status Send(const std::string& url, const std::vector<Waiting>& loads);

  const std::function<std::string()> leader_;
  const std::shared_ptr<const tls::CredentialStore> credentials_;
  // The thread's own:
  std::string url_;
  std::unique_ptr<http::Client> client_;
  std::string last_error_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::map<std::string, Waiting> waiting_;  ///< Guarded; by uid, the last of each.
  std::jthread thread_;
};

}  // namespace rouse::actuate
