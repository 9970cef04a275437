// The server as KEDA uses it, over real gRPC on loopback.

#include "operator/scaler/server.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <map>
#include <mutex>
#include <thread>

#include "common/tests/eventually.h"
#include "operator/scaler/externalscaler.grpc.pb.h"

using namespace rouse;
using namespace rouse::scaler;
using namespace std::chrono_literals;
using test::Eventually;
namespace pb = externalscaler;

namespace {

plan::ServiceLoad Idle() {
  return {.wanted = 1, .serving = {{.pod = "m-0", .load = EngineLoad{}, .unknown = ""}}};
}
plan::ServiceLoad Busy(std::uint64_t running) {
  plan::ServiceLoad load = Idle();
  load.serving[0].load->running = running;
  return load;
}
plan::ServiceLoad Unknown() {
  return {.wanted = 1, .serving = {{.pod = "m-0", .load = {}, .unknown = "it is silent"}}};
}

/// The operator's part: what is known, by key.
class Known {
 public:
  void Set(const std::string& key, Result<plan::ServiceLoad> load) {
    std::lock_guard lock(mutex_);
    loads_.insert_or_assign(key, std::move(load));
  }
  Result<plan::ServiceLoad> Get(const std::string& key) {
    std::lock_guard lock(mutex_);
    const auto it = loads_.find(key);
    if (it == loads_.end()) return NotFound("there is no ModelService " + key);
    return it->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, Result<plan::ServiceLoad>> loads_;
};

pb::ScaledObjectRef Ref(const std::string& name = "m") {
  pb::ScaledObjectRef ref;
  ref.set_name(name);
  ref.set_namespace_("ns");
  (*ref.mutable_scalermetadata())["loadPerReplica"] = "2.5";
  return ref;
}

struct Scaler {
  explicit Scaler(std::size_t max_streams = 1'000) {
    auto started = Server::Start({.host = "127.0.0.1",
                                  .port = 0,
                                  .max_streams = max_streams,
                                  .on_answered =
                                      [this](const std::string& method, const std::string& code) {
                                        std::lock_guard lock(mutex);
                                        ++answered[method + " " + code];
                                      }},
                                 [this](const std::string& key) { return known.Get(key); });
    REQUIRE(started.ok());
    server = *std::move(started);
    stub = Connect();
  }
  ~Scaler() {
    server.reset();
    stub.reset();
    // A channel lives until the library has let go of it, and the library then ends on a thread
    // that nobody joins: a process that ends meanwhile leaves threads behind. Once in a thousand
    // times the library still holds a connection after minutes (grpc/grpc#37683 is such a race in
    // its server); then none of its threads ends, and there is nothing to wait for.
    (void)Eventually([] { return grpc_is_initialized() == 0; }, 10s);
  }
  std::unique_ptr<pb::ExternalScaler::Stub> Connect() const {
    return pb::ExternalScaler::NewStub(grpc::CreateChannel(
        "127.0.0.1:" + std::to_string(server->port()), grpc::InsecureChannelCredentials()));
  }
  void Set(const std::string& key, Result<plan::ServiceLoad> load) {
    known.Set(key, std::move(load));
    server->Changed(key);
  }
  int Answered(const std::string& what) {
    std::lock_guard lock(mutex);
    return answered[what];
  }

  Known known;
  std::mutex mutex;
  std::map<std::string, int> answered;
  std::unique_ptr<Server> server;
  std::unique_ptr<pb::ExternalScaler::Stub> stub;
};

/// One StreamIsActive; reads on a thread of its own, since gRPC's reads have no timeout.
class Listener {
 public:
  Listener(pb::ExternalScaler::Stub& stub, const pb::ScaledObjectRef& ref) {
    reader_ = stub.StreamIsActive(&context_, ref);
    thread_ = std::thread([this] {
      pb::IsActiveResponse response;
      while (reader_->Read(&response)) {
        std::lock_guard lock(mutex_);
        heard_.push_back(response.result());
      }
      const grpc::Status status = reader_->Finish();
      std::lock_guard lock(mutex_);
      end_ = status;
    });
  }
  ~Listener() {
    context_.TryCancel();
    thread_.join();
  }

  std::vector<bool> heard() {
    std::lock_guard lock(mutex_);
    return heard_;
  }
  std::optional<grpc::Status> end() {
    std::lock_guard lock(mutex_);
    return end_;
  }
  bool Hears(const std::vector<bool>& all) {
    return Eventually([&] { return heard() == all; });
  }
  bool Ends() {
    return Eventually([&] { return end().has_value(); });
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<pb::IsActiveResponse>> reader_;
  std::mutex mutex_;
  std::vector<bool> heard_;
  std::optional<grpc::Status> end_;
  std::thread thread_;
};

grpc::Status AskIsActive(Scaler& scaler, const pb::ScaledObjectRef& ref, bool* active) {
  grpc::ClientContext context;
  pb::IsActiveResponse response;
  const grpc::Status status = scaler.stub->IsActive(&context, ref, &response);
  *active = response.result();
  return status;
}

grpc::Status AskMetrics(Scaler& scaler, pb::GetMetricsResponse* response,
                        const std::string& metric = "rouse-load") {
  grpc::ClientContext context;
  pb::GetMetricsRequest request;
  *request.mutable_scaledobjectref() = Ref();
  request.set_metricname(metric);
  return scaler.stub->GetMetrics(&context, request, response);
}

}  // namespace

TEST_CASE("the metric, its target, its value and the activity are answered") {
  Scaler scaler;
  scaler.Set("ns/m", Busy(7));
  {
    grpc::ClientContext context;
    pb::GetMetricSpecResponse spec;
    REQUIRE(scaler.stub->GetMetricSpec(&context, Ref(), &spec).ok());
    REQUIRE(spec.metricspecs_size() == 1);
    CHECK(spec.metricspecs(0).metricname() == "rouse-load");
    CHECK(spec.metricspecs(0).targetsize() == 3);
    CHECK(spec.metricspecs(0).targetsizefloat() == 2.5);
  }
  pb::GetMetricsResponse metrics;
  REQUIRE(AskMetrics(scaler, &metrics).ok());
  REQUIRE(metrics.metricvalues_size() == 1);
  CHECK(metrics.metricvalues(0).metricname() == "rouse-load");
  CHECK(metrics.metricvalues(0).metricvalue() == 7);
  CHECK(metrics.metricvalues(0).metricvaluefloat() == 7);
  bool active = false;
  REQUIRE(AskIsActive(scaler, Ref(), &active).ok());
  CHECK(active);
  scaler.Set("ns/m", Idle());
  REQUIRE(AskIsActive(scaler, Ref(), &active).ok());
  CHECK_FALSE(active);
  CHECK(scaler.Answered("IsActive Ok") == 2);
  CHECK(scaler.Answered("GetMetrics Ok") == 1);
}

TEST_CASE("errors have gRPC's codes and say why") {
  Scaler scaler;
  bool active = false;
  pb::GetMetricsResponse metrics;
  grpc::Status status = AskIsActive(scaler, Ref(), &active);
  CHECK(status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(status.error_message() == "there is no ModelService ns/m");

  scaler.Set("ns/m", Unknown());
  for (const auto& each : {AskIsActive(scaler, Ref(), &active), AskMetrics(scaler, &metrics)}) {
    CHECK(each.error_code() == grpc::StatusCode::UNAVAILABLE);
    CHECK_THAT(each.error_message(), Catch::Contains("it is silent"));
  }
  status = AskMetrics(scaler, &metrics, "other");
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK_THAT(status.error_message(), Catch::Contains("\"other\" is unknown"));

  pb::ScaledObjectRef wrong = Ref();
  (*wrong.mutable_scalermetadata())["loadPerReplica"] = "many";
  status = AskIsActive(scaler, wrong, &active);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK_THAT(status.error_message(), Catch::Contains("\"many\""));
  Listener listener(*scaler.stub, wrong);
  REQUIRE(listener.Ends());
  CHECK(listener.end()->error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(listener.heard().empty());
  CHECK(scaler.Answered("StreamIsActive InvalidArgument") == 1);
}

TEST_CASE("a listener hears what is, and each change as it comes") {
  Scaler scaler;
  scaler.Set("ns/m", Idle());
  scaler.Set("ns/n", Idle());
  Listener m(*scaler.stub, Ref());
  Listener n(*scaler.stub, Ref("n"));
  REQUIRE(m.Hears({false}));
  REQUIRE(n.Hears({false}));
  const auto began = std::chrono::steady_clock::now();
  scaler.Set("ns/m", Busy(1));
  REQUIRE(m.Hears({false, true}));
  CHECK(std::chrono::steady_clock::now() - began < 1s);
  scaler.Set("ns/m", Busy(2));  // Nothing new, nor is that nothing is known.
  scaler.Set("ns/m", Unknown());
  scaler.Set("ns/m", Idle());
  REQUIRE(m.Hears({false, true, false}));
  CHECK(n.heard() == std::vector{false});
}

TEST_CASE("a listener of what is not known yet hears once it is") {
  Scaler scaler;
  scaler.Set("ns/m", Unknown());
  Listener listener(*scaler.stub, Ref());
  std::this_thread::sleep_for(100ms);
  CHECK(listener.heard().empty());
  scaler.Set("ns/m", Idle());
  CHECK(listener.Hears({false}));
}

TEST_CASE("a listener's call ends with its ModelService") {
  Scaler scaler;
  scaler.Set("ns/m", Idle());
  Listener listener(*scaler.stub, Ref());
  REQUIRE(listener.Hears({false}));
  scaler.Set("ns/m", NotFound("it is gone"));
  REQUIRE(listener.Ends());
  CHECK(listener.end()->error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(listener.end()->error_message() == "it is gone");
}

TEST_CASE("listeners are bounded, and one that went makes room") {
  Scaler scaler(2);
  scaler.Set("ns/m", Idle());
  auto first = std::make_unique<Listener>(*scaler.stub, Ref());
  Listener second(*scaler.stub, Ref());
  REQUIRE(first->Hears({false}));
  REQUIRE(second.Hears({false}));
  Listener third(*scaler.stub, Ref());
  REQUIRE(third.Ends());
  CHECK(third.end()->error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  first.reset();
  CHECK(Eventually([&] {
    Listener again(*scaler.stub, Ref());
    return again.Hears({false});
  }));
}

TEST_CASE("a request of any size does no harm") {
  Scaler scaler;
  scaler.Set("ns/m", Idle());
  pb::ScaledObjectRef large = Ref();
  (*large.mutable_scalermetadata())["modelService"] = std::string(1 << 20, 'x');
  bool active = false;
  CHECK(AskIsActive(scaler, large, &active).error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(AskIsActive(scaler, Ref(), &active).ok());
}

TEST_CASE("a port in use is an error") {
  Scaler scaler;
  const auto second = Server::Start({.host = "127.0.0.1", .port = scaler.server->port()},
                                    [](const std::string&) { return NotFound("none"); });
  REQUIRE_FALSE(second.ok());
  CHECK_THAT(second.status().message(), Catch::Contains(std::to_string(scaler.server->port())));
}

TEST_CASE("the server ends while it is listened to, asked and told of changes") {
  Scaler scaler;
  scaler.Set("ns/m", Idle());
  std::vector<std::unique_ptr<Listener>> listeners;
  for (int i = 0; i < 20; ++i) listeners.push_back(std::make_unique<Listener>(*scaler.stub, Ref()));
  for (auto& each : listeners) REQUIRE(each->Hears({false}));
  std::atomic<bool> stop{false};
  const auto own = scaler.Connect();
  std::thread asking([&] {
    while (!stop) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + 1s);
      pb::IsActiveResponse response;
      (void)own->IsActive(&context, Ref(), &response);
    }
  });
  std::thread telling([&] {
    for (std::uint64_t i = 0; i < 2'000; ++i) {
      scaler.known.Set("ns/m", Busy(i % 2));
      scaler.server->Changed("ns/m");
    }
  });
  telling.join();
  scaler.server.reset();
  for (auto& each : listeners) {
    REQUIRE(each->Ends());
    CHECK_FALSE(each->end()->ok());
  }
  stop = true;
  asking.join();
}
