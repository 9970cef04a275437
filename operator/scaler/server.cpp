#include "operator/scaler/server.h"

#include <grpc/support/log.h>
#include <pthread.h>

#include <vector>

#include "common/host_in_url.h"
#include "common/log.h"
#include "operator/scaler/server_impl.h"

namespace rouse::scaler {
namespace {

using std::chrono::milliseconds;

/// A request of KEDA's is some hundred bytes.
constexpr int kMaxMessage = 64 << 10;
/// Listeners are looked after at least so often, whatever changed.
constexpr milliseconds kTick{5'000};
/// A client that has gone without a word, a node that died, is noticed after both.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;

/// What the library may hold for all calls together.
constexpr std::size_t kMaxMemory = 64u << 20;

void LogOfLibrary(gpr_log_func_args* args) {
  if (args->severity == GPR_LOG_SEVERITY_ERROR) {
    log::Warning("gRPC", {{"error", args->message}, {"file", args->file}, {"line", args->line}});
  } else {
    log::Debug("gRPC", {{"message", args->message}});
  }
}

}  // namespace

Status Server::Impl::Start() {
  gpr_set_log_function(&LogOfLibrary);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(HostInUrl(options_.host) + ":" + std::to_string(options_.port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // A port in use is an error.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(options_.max_streams) + 100);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  builder.SetResourceQuota(grpc::ResourceQuota("keda-scaler").Resize(kMaxMemory));
  builder.RegisterService(&service_);
  queue_ = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    server_.reset();
    return Unavailable("gRPC cannot listen on " + options_.host + ":" +
                       std::to_string(options_.port) + ": is the port in use?");
  }
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "keda-scaler");
    Run();
  });
  return {};
}

Server::Impl::~Impl() {
  if (thread_.joinable()) {
    server_->Shutdown(std::chrono::system_clock::now());  // Ends all calls.
    {
      const std::scoped_lock lock(mutex_);
      closing_ = true;
      Ring();
    }
    thread_.join();
    return;
  }
  if (queue_ == nullptr) return;
  queue_->Shutdown();  // The library wants it empty.
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) {
  }
}

void Server::Impl::Changed(const std::string& key) {
  const std::scoped_lock lock(mutex_);
  if (closing_ || !listened_.contains(key)) return;
  changed_.insert(key);
  Ring();
}

void Server::Impl::Ring() {
  if (std::exchange(rung_, true)) return;
  alarm_.Set(queue_.get(), std::chrono::system_clock::now(), &bell_);
}

void Server::Impl::Run() {
  ExpectAll();
  for (;;) {
    void* tag = nullptr;
    bool ok = false;
    const auto next = queue_->AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kTick);
    if (next == grpc::CompletionQueue::SHUTDOWN) return;
    if (next == grpc::CompletionQueue::GOT_EVENT) static_cast<Tag*>(tag)->Done(ok);
    if (closed_) continue;
    if (tag == &bell_) {
      const std::scoped_lock lock(mutex_);
      rung_ = false;
      closed_ = closing_;
    }
    if (closed_) {
      queue_->Shutdown();
    } else {
      TellListeners();
    }
  }
}

void Server::Impl::TellListeners() {
  std::set<std::string> changed;
  {
    const std::scoped_lock lock(mutex_);
    changed.swap(changed_);
  }
  const bool all = Clock::now() - looked_at_ >= kTick;
  if (all) looked_at_ = Clock::now();
  std::vector<StreamCall*> told;  // Telling may end a listener.
  for (const auto& [key, listener] : listeners_) {
    if (all || changed.contains(key)) told.push_back(listener);
  }
  for (StreamCall* listener : told) listener->Tell();
}

template <typename Request, typename Response, typename Ask, typename Answer>
void Server::Impl::Expect(const char* method, Ask ask, Answer answer) {
  auto call = std::make_unique<UnaryCall<Request, Response>>(
      *this, method,
      [&](auto* context, Request* request, auto* writer, Tag* tag) {
        (service_.*ask)(context, request, writer, queue_.get(), queue_.get(), tag);
      },
      [=, this] { Expect<Request, Response>(method, ask, answer); },
      [=, this](const Request& request) { return (this->*answer)(request); });
  calls_.emplace(call.get(), std::move(call));
}

void Server::Impl::ExpectStream() {
  auto call = std::make_unique<StreamCall>(*this);
  calls_.emplace(call.get(), std::move(call));
}

void Server::Impl::ExpectAll() {
  using Service = pb::ExternalScaler::AsyncService;
  Expect<pb::ScaledObjectRef, pb::IsActiveResponse>("IsActive", &Service::RequestIsActive,
                                                    &Impl::IsActive);
  Expect<pb::ScaledObjectRef, pb::GetMetricSpecResponse>(
      "GetMetricSpec", &Service::RequestGetMetricSpec, &Impl::GetMetricSpec);
  Expect<pb::GetMetricsRequest, pb::GetMetricsResponse>("GetMetrics", &Service::RequestGetMetrics,
                                                        &Impl::GetMetrics);
  ExpectStream();
}

Result<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Look look) {
  auto impl = std::make_unique<Impl>(options, std::move(look));
  ROUSE_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

void Server::Changed(const std::string& key) {
  impl_->Changed(key);
}

std::uint16_t Server::port() const {
  return impl_->port();
}

}  // namespace rouse::scaler
