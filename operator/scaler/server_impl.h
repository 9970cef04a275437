// The insides of Server; only for the files of this folder. gRPC's asynchronous interface: we ask
// for something, and its tag comes out of the queue when that has happened.

#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "operator/scaler/externalscaler.grpc.pb.h"
#include "operator/scaler/server.h"
#include "operator/scaler/trigger.h"

namespace rouse::scaler {

namespace pb = ::externalscaler;

using Clock = std::chrono::steady_clock;

grpc::Status ToGrpc(const Status& status);
ScaledObject FromProto(const pb::ScaledObjectRef& ref);

/// What the library gives back when something that it was asked for has happened.
class Tag {
 public:
  /// `ok`: as the library says; false when it did not happen because the call or the server ended.
  explicit Tag(std::function<void(bool ok)> then) : then_(std::move(then)) {}
  void Done(bool ok) { then_(ok); }

 private:
  const std::function<void(bool ok)> then_;
};

// All but Changed and the destructor runs on the one thread. A call object belongs to calls_ from
// when it waits for its request until all of its tags have come back.
class Server::Impl {
 public:
  Impl(const ServerOptions& options, Look look) : options_(options), look_(std::move(look)) {}
  ~Impl();
  Status Start();
  void Changed(const std::string& key);
  std::uint16_t port() const { return static_cast<std::uint16_t>(port_); }

 private:
  template <typename Request, typename Response>
  class UnaryCall;
  class StreamCall;
  class Call {
   public:
    virtual ~Call() = default;
  };

  void Run();
  void ExpectAll();
  void ExpectStream();
  template <typename Request, typename Response, typename Ask, typename Answer>
  void Expect(const char* method, Ask ask, Answer answer);
  void TellListeners();
  void Answered(const std::string& method, const Status& status) {
    options_.on_answered(method, std::string(ToString(status.code())));
  }
  void Ring();  ///< Requires mutex_.

  Result<pb::IsActiveResponse> IsActive(const pb::ScaledObjectRef& ref);
  Result<pb::GetMetricSpecResponse> GetMetricSpec(const pb::ScaledObjectRef& ref);
  Result<pb::GetMetricsResponse> GetMetrics(const pb::GetMetricsRequest& request);

  const ServerOptions options_;
  const Look look_;
  int port_ = 0;
  pb::ExternalScaler::AsyncService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::unordered_map<const Call*, std::unique_ptr<Call>> calls_;
  std::multimap<std::string, StreamCall*> listeners_;  ///< By key; those that are to be told.
  Clock::time_point looked_at_ = Clock::now();
  bool closed_ = false;  ///< Nothing more may be asked of the library.

  std::mutex mutex_;
  std::multiset<std::string> listened_;  ///< Guarded, as what follows: the keys of listeners_.
  std::set<std::string> changed_;
  bool rung_ = false;  ///< bell_ is on its way.
  bool closing_ = false;
  Tag bell_{[](bool) {}};
  grpc::Alarm alarm_;
  std::thread thread_;
};

template <typename Request, typename Response>
class Server::Impl::UnaryCall final : public Call {
 public:
  template <typename Ask>
  UnaryCall(Impl& impl, std::string method, const Ask& ask, std::function<void()> next,
            std::function<Result<Response>(const Request&)> answer)
      : impl_(impl),
        method_(std::move(method)),
        next_(std::move(next)),
        answer_(std::move(answer)) {
    ask(&context_, &request_, &writer_, &tag_);
  }

 private:
  void Done(bool ok) {
    if (answered_ || !ok || impl_.closed_) {
      impl_.calls_.erase(this);  // Deletes this.
      return;
    }
    answered_ = true;
    next_();
    const Result<Response> response = answer_(request_);
    impl_.Answered(method_, response.status());
    if (response.ok()) {
      writer_.Finish(*response, grpc::Status::OK, &tag_);
    } else {
      writer_.FinishWithError(ToGrpc(response.status()), &tag_);
    }
  }

  Impl& impl_;
  const std::string method_;
  const std::function<void()> next_;
  const std::function<Result<Response>(const Request&)> answer_;
  grpc::ServerContext context_;
  Request request_;
  grpc::ServerAsyncResponseWriter<Response> writer_{&context_};
  Tag tag_{[this](bool ok) { Done(ok); }};
  bool answered_ = false;
};

/// One listener's StreamIsActive.
class Server::Impl::StreamCall final : public Call {
 public:
  /// Waits for a client.
  explicit StreamCall(Impl& impl);

  /// Says what is new, unless it still writes: then once it has.
  void Tell();

 private:
  void Begun(bool ok);
  void Written(bool ok);
  void Ended();
  void Finish(const Status& status);
  void StopListening();

  Impl& impl_;
  Tag begun_{[this](bool ok) { Begun(ok); }};
  Tag written_{[this](bool ok) { Written(ok); }};
  Tag ended_{[this](bool) { Ended(); }};
  grpc::ServerContext context_;
  pb::ScaledObjectRef request_;
  grpc::ServerAsyncWriter<pb::IsActiveResponse> writer_{&context_};
  Trigger trigger_{};
  std::optional<bool> told_;
  Clock::time_point told_at_;
  bool pending_ = false;   ///< written_ has still to come.
  bool finished_ = false;  ///< We have said our last.
  bool gone_ = false;      ///< The call is over.
};

}  // namespace rouse::scaler
