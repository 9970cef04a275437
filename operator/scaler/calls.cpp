// What is said in answer to each call.

#include <cmath>

#include "operator/scaler/server_impl.h"

namespace rouse::scaler {

using std::chrono::milliseconds;

grpc::Status ToGrpc(const Status& status) {
  const auto code = [&] {
    switch (status.code()) {
      case StatusCode::kInvalidArgument:
        return grpc::StatusCode::INVALID_ARGUMENT;
      case StatusCode::kNotFound:
        return grpc::StatusCode::NOT_FOUND;
      case StatusCode::kUnavailable:
        return grpc::StatusCode::UNAVAILABLE;
      case StatusCode::kResourceExhausted:
        return grpc::StatusCode::RESOURCE_EXHAUSTED;
      default:
        return grpc::StatusCode::INTERNAL;
    }
  };
  return {code(), status.message()};
}

ScaledObject FromProto(const pb::ScaledObjectRef& ref) {
  return {.name = ref.name(),
          .ns = ref.namespace_(),
          .metadata = {ref.scalermetadata().begin(), ref.scalermetadata().end()}};
}

Result<pb::IsActiveResponse> Server::Impl::IsActive(const pb::ScaledObjectRef& ref) {
  ROUSE_ASSIGN_OR_RETURN(const Trigger trigger, TriggerOf(FromProto(ref)));
  ROUSE_ASSIGN_OR_RETURN(const plan::ServiceLoad load, look_(trigger.key));
  ROUSE_ASSIGN_OR_RETURN(const bool active, plan::IsActive(load, trigger.activation));
  pb::IsActiveResponse response;
  response.set_result(active);
  return response;
}

Result<pb::GetMetricSpecResponse> Server::Impl::GetMetricSpec(const pb::ScaledObjectRef& ref) {
  ROUSE_ASSIGN_OR_RETURN(const Trigger trigger, TriggerOf(FromProto(ref)));
  pb::GetMetricSpecResponse response;
  pb::MetricSpec& spec = *response.add_metricspecs();
  spec.set_metricname(kMetricName);
  spec.set_targetsize(static_cast<std::int64_t>(std::ceil(trigger.load_per_replica)));
  spec.set_targetsizefloat(trigger.load_per_replica);
  return response;
}

Result<pb::GetMetricsResponse> Server::Impl::GetMetrics(const pb::GetMetricsRequest& request) {
  ROUSE_ASSIGN_OR_RETURN(const Trigger trigger, TriggerOf(FromProto(request.scaledobjectref())));
  ROUSE_RETURN_IF_ERROR(CheckMetricName(request.metricname()));
  ROUSE_ASSIGN_OR_RETURN(const plan::ServiceLoad load, look_(trigger.key));
  ROUSE_ASSIGN_OR_RETURN(const std::uint64_t total, plan::TotalLoad(load));
  pb::GetMetricsResponse response;
  pb::MetricValue& value = *response.add_metricvalues();
  value.set_metricname(kMetricName);
  value.set_metricvalue(static_cast<std::int64_t>(total));
  value.set_metricvaluefloat(static_cast<double>(total));
  return response;
}

Server::Impl::StreamCall::StreamCall(Impl& impl) : impl_(impl) {
  context_.AsyncNotifyWhenDone(&ended_);
  impl_.service_.RequestStreamIsActive(&context_, &request_, &writer_, impl_.queue_.get(),
                                       impl_.queue_.get(), &begun_);
}

void Server::Impl::StreamCall::Tell() {
  if (pending_ || finished_ || gone_ || impl_.closed_) return;
  const auto load = impl_.look_(trigger_.key);
  if (!load.ok() && load.status().code() == StatusCode::kNotFound) return Finish(load.status());
  const auto active = load.ok() ? plan::IsActive(*load, trigger_.activation) : load.status();
  if (!active.ok()) return;  // Whoever asks is told why; a listener keeps what it knows.
  const auto since = std::chrono::duration_cast<milliseconds>(Clock::now() - told_at_);
  if (!plan::ShouldTell(told_, *active, since)) return;
  told_ = *active;
  told_at_ = Clock::now();
  pb::IsActiveResponse response;
  response.set_result(*active);
  pending_ = true;
  writer_.Write(response, &written_);
}

void Server::Impl::StreamCall::Begun(bool ok) {
  if (!ok) {  // The server ends; ended_ does not come for a call that never was.
    impl_.calls_.erase(this);
    return;
  }
  if (impl_.closed_) return;  // ended_ comes.
  impl_.ExpectStream();
  const auto trigger = TriggerOf(FromProto(request_));
  if (!trigger.ok()) return Finish(trigger.status());
  if (impl_.listeners_.size() >= impl_.options_.max_streams) {
    return Finish(
        Status(StatusCode::kResourceExhausted,
               "there are " + std::to_string(impl_.options_.max_streams) + " listeners already"));
  }
  trigger_ = *trigger;
  impl_.listeners_.emplace(trigger_.key, this);
  {
    const std::scoped_lock lock(impl_.mutex_);
    impl_.listened_.insert(trigger_.key);
  }
  Tell();
}

void Server::Impl::StreamCall::Finish(const Status& status) {
  impl_.Answered("StreamIsActive", status);
  StopListening();
  finished_ = pending_ = true;
  writer_.Finish(ToGrpc(status), &written_);
}

void Server::Impl::StreamCall::Written(bool ok) {
  pending_ = false;
  if (gone_) {
    impl_.calls_.erase(this);
  } else if (ok) {
    Tell();
  }
}

void Server::Impl::StreamCall::Ended() {
  if (!finished_) impl_.Answered("StreamIsActive", Status());
  gone_ = true;
  StopListening();
  if (!pending_) impl_.calls_.erase(this);
}

void Server::Impl::StreamCall::StopListening() {
  const auto [first, last] = impl_.listeners_.equal_range(trigger_.key);
  for (auto it = first; it != last; ++it) {
    if (it->second == this) {
      impl_.listeners_.erase(it);
      const std::scoped_lock lock(impl_.mutex_);
      impl_.listened_.extract(trigger_.key);  // One of them.
      return;
    }
  }
}

}  // namespace rouse::scaler
