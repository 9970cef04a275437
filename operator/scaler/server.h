// Answers KEDA's external push scaler protocol over gRPC.
//
// gRPC stays behind this header: its types appear nowhere else. Nothing is decided here: what a
// trigger means is in trigger.h, what it is answered in operator/plan/load.h.
//
// One thread of ours ("keda-scaler") does all the work; gRPC adds some of its own (six on two
// cores, more on more), which never call into code of ours.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "operator/plan/load.h"

namespace rouse::scaler {

/// What is known of the ModelService "ns/name" now. NotFound: there is none. Called on the server's
/// thread; must be quick.
using Look = std::function<Result<plan::ServiceLoad>(const std::string& key)>;

struct ServerOptions {
  std::string host = "0.0.0.0";
  std::uint16_t port = 0;  ///< 0: any.
  /// At most so many listeners (StreamIsActive); more are ResourceExhausted.
  std::size_t max_streams = 1'000;
  /// A call was answered, with this error or "OK". Called on the server's thread.
  std::function<void(const std::string& method, const std::string& code)> on_answered =
      [](const std::string&, const std::string&) {};
};

class Server {
 public:
  /// Unavailable when the port cannot be had.
  static Result<std::unique_ptr<Server>> Start(const ServerOptions& options, Look look);
  /// Ends all calls.
  ~Server();

  /// Something about this ModelService may have changed: whoever listens is told at once what is
  /// new. Thread-safe, quick.
  void Changed(const std::string& key);

  std::uint16_t port() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace rouse::scaler
