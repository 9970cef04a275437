// The client among ourselves: HTTP over mutual TLS, blocking, by Boost.Beast. Private to
// rouse_http; common/http.h has the contract.

#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "common/http.h"
#include "common/tls/connection.h"

namespace rouse::http {

class PeerClient {
 public:
  /// `what` is what messages call the server, `prefix` comes before each target.
  PeerClient(std::string host, std::uint16_t port, std::string what, std::string prefix,
             MutualTls tls);

  Result<Response> Send(const Request& request, std::size_t max_body_bytes);
  Status Connect(std::chrono::milliseconds deadline);

 private:
  Result<Response> SendOnce(const Request& request, std::size_t max_body_bytes,
                            std::chrono::steady_clock::time_point until, bool fresh,
                            bool* answered);
  Result<std::unique_ptr<tls::Connection>> Open(std::chrono::steady_clock::time_point until,
                                                std::chrono::milliseconds silence);
  std::string ToText(const Request& request) const;
  std::unique_ptr<tls::Connection> TakeIdle();
  void Keep(std::unique_ptr<tls::Connection> connection);

  const tls::Server server_;
  const std::string what_;
  const std::string prefix_;
  const std::shared_ptr<const tls::CredentialStore> credentials_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<tls::Connection>> idle_;  ///< Guarded by mutex_.
};

}  // namespace rouse::http
