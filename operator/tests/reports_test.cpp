#include <catch2/catch.hpp>
#include <set>

#include "common/messages.h"
#include "operator/tests/actuate_world.h"

using namespace rouse;
using namespace rouse::actuate;
using namespace rouse::actuate::testing;
using kube::Json;

namespace {

// Three instances of one ModelService on two nodes.
struct ReportingAgents {
  kube::FakeApi api;
  std::unique_ptr<Process> process;

  ReportingAgents() {
    PutService(api, 3);
    process = std::make_unique<Process>(api);
    process->Sync();
    REQUIRE(process->reconciler->Reconcile(kKey).ok());
    for (int i = 0; i < 3; ++i) {
      Json pod = PodJson(api, "demo-" + std::to_string(i));
      pod["spec"]["nodeName"] = i == 2 ? "node-b" : "node-a";
      pod["status"]["podIP"] = "10.0.0." + std::to_string(i);
      api.Put(kube::Pods(), pod);
    }
    process->Sync();
  }

  Json Report(const std::string& pod, const std::string& state = "Serving") {
    const Json object = PodJson(api, pod);
    return {{"protocol", "rouse-agent"},
            {"version", 1},
            {"namespace", "default"},
            {"pod", pod},
            {"podUid", object["metadata"]["uid"]},
            {"node", object["spec"]["nodeName"]},
            {"address", "https://" + object["status"]["podIP"].get<std::string>() + ":7411"},
            {"state", state},
            {"message", ""},
            {"weights",
             {{"form", "Loaded"},
              {"identity", std::string(64, 'a')},
              {"bytes", 9},
              {"ranks", 1},
              {"servable", true}}},
            {"bytesBySource", {{"peer", 0}, {"storage", 9}}},
            {"transport", ""},
            {"timeline", nullptr}};
  }

  /// By the agent of the pod that it says it is of.
  http::Response Send(const Json& report) {
    return SendText(report.dump(),
                    tls::Agent(report["namespace"], report["pod"], report["podUid"]));
  }
  http::Response SendText(const std::string& text,
                          const std::optional<tls::Identity>& sender = tls::Agent("a", "b", "c")) {
    http::Request request;
    request.method = "POST";
    request.target = "/v1/agents/report";
    request.body = text;
    request.peer = sender;
    return process->reports.Handle(request);
  }
  std::size_t Applies() {
    std::size_t n = 0;
    for (const auto& call : api.calls()) n += call.starts_with("apply");
    return n;
  }
};

std::string Code(const http::Response& response) {
  return Json::parse(response.body)["error"]["code"];
}

}  // namespace

TEST_CASE("a report is kept on the pod and answered with the other instances, nearest first") {
  ReportingAgents agents;
  for (const char* pod : {"demo-0", "demo-2"}) {
    const auto response = agents.Send(agents.Report(pod));
    INFO(response.body);
    REQUIRE(response.status == 200);
  }
  const Json annotations = PodJson(agents.api, "demo-0")["metadata"]["annotations"];
  CHECK(annotations["rouse.dev/agent-state"] == "Serving");
  CHECK(annotations["rouse.dev/agent-address"] == "https://10.0.0.0:7411");
  CHECK(annotations["rouse.dev/path"] == "Storage");
  agents.process->Sync();

  const auto response = agents.Send(agents.Report("demo-1"));
  REQUIRE(response.status == 200);
  const auto assignment = AssignmentFromJson(Json::parse(response.body));
  REQUIRE(assignment.ok());
  CHECK(assignment->path == StartPath::kStorage);
  CHECK(
      assignment->peers ==
      std::vector<Peer>{{"demo-0", "node-a", "https://10.0.0.0:7411", false, Distance::kNode},
                        {"demo-2", "node-b", "https://10.0.0.2:7411", false, Distance::kFarther}});
  CHECK(assignment->report_after_ms == 10'000);
}

TEST_CASE(
    "an agent is told who keeps caches in its namespace, and how many copies there are to be") {
  ReportingAgents agents;
  for (const char* pod : {"demo-0", "demo-2"}) {
    REQUIRE(agents.Send(agents.Report(pod)).status == 200);
  }
  Json elsewhere = PodJson(agents.api, "demo-2");
  elsewhere["metadata"] = {{"name", "far-0"},
                           {"namespace", "other"},
                           {"uid", "uid-far-0"},
                           {"labels", elsewhere["metadata"]["labels"]},
                           {"ownerReferences", elsewhere["metadata"]["ownerReferences"]},
                           {"annotations", elsewhere["metadata"]["annotations"]}};
  agents.api.Put(kube::Pods(), elsewhere);
  Json service = PodJson(agents.api, "demo-0");
  service["metadata"]["name"] = "second-0";
  service["metadata"]["uid"] = "uid-second-0";
  service["metadata"]["labels"]["rouse.dev/modelservice"] = "second";
  agents.api.Put(kube::Pods(), service);
  agents.process->Sync();
  const auto assignment =
      AssignmentFromJson(Json::parse(agents.Send(agents.Report("demo-1")).body));
  REQUIRE(assignment.ok());
  std::set<std::string> pods;
  for (const Keeper& keeper : assignment->keepers) pods.insert(keeper.pod);
  CHECK(pods == std::set<std::string>{"demo-0", "demo-2", "second-0"});
  CHECK(assignment->state_copies == 2);
  CHECK(assignment->siblings.size() == 2);  // Of its own ModelService alone.
}

TEST_CASE("who keeps caches is not told again to an agent that has the list") {
  ReportingAgents agents;
  for (const char* pod : {"demo-0", "demo-2"}) {
    REQUIRE(agents.Send(agents.Report(pod)).status == 200);
  }
  agents.process->Sync();
  const auto ask = [&](const std::string& digest) {
    Json report = agents.Report("demo-1");
    if (!digest.empty()) report["keepersDigest"] = digest;
    const auto assignment = AssignmentFromJson(Json::parse(agents.Send(report).body));
    REQUIRE(assignment.ok());
    return *assignment;
  };
  const Assignment first = ask("");
  CHECK(first.keepers.size() == 2);
  const Assignment again = ask(first.keepers_digest);
  CHECK(again.keepers.empty());
  CHECK(again.keepers_digest == first.keepers_digest);
  CHECK(ask("of another list").keepers == first.keepers);

  agents.process->Sync();  // demo-1 is one of them now.
  const Assignment changed = ask(first.keepers_digest);
  CHECK(changed.keepers.size() == 3);
  CHECK(changed.keepers_digest != first.keepers_digest);
}

TEST_CASE("an agent whose instance stays what it is reports the more rarely the more there are") {
  CHECK(ReportAfterMs(AgentState::kServing, 1) == 10'000);
  CHECK(ReportAfterMs(AgentState::kAsleep, 200) == 10'000);
  CHECK(ReportAfterMs(AgentState::kServing, 2'000) == 100'000);
  CHECK(ReportAfterMs(AgentState::kServing, 1'000'000) == 300'000);
  CHECK(ReportAfterMs(AgentState::kPulling, 1'000'000) == 500);
}

TEST_CASE("who keeps caches is told as it is after each change, to each namespace its own") {
  ReportingAgents agents;
  for (const char* pod : {"demo-0", "demo-1", "demo-2"}) {
    REQUIRE(agents.Send(agents.Report(pod)).status == 200);
  }
  agents.process->Sync();
  const auto keepers = [&](const Json& report) {
    const auto assignment = AssignmentFromJson(Json::parse(agents.Send(report).body));
    REQUIRE(assignment.ok());
    std::set<std::string> pods;
    for (const Keeper& keeper : assignment->keepers) {
      pods.insert(keeper.pod + (keeper.leaving ? " leaves" : ""));
    }
    return pods;
  };
  const Json report = agents.Report("demo-0");
  const Json before = PodJson(agents.api, "demo-1");
  const std::set<std::string> all = {"demo-0", "demo-1", "demo-2"};
  CHECK(keepers(report) == all);
  CHECK(keepers(report) == all);

  using Kind = kube::StoreEvent::Kind;
  Json failed = before;
  failed["metadata"]["annotations"]["rouse.dev/agent-state"] = "Failed";
  agents.process->cache.pod_sink().Take({Kind::kApply, failed});
  CHECK(keepers(report) == std::set<std::string>{"demo-0", "demo-1 leaves", "demo-2"});
  agents.process->cache.pod_sink().Take({Kind::kDelete, failed});
  CHECK(keepers(report) == std::set<std::string>{"demo-0", "demo-2"});
  agents.process->cache.pod_sink().Take({Kind::kApply, before});
  CHECK(keepers(report) == all);

  // Most nodes are well, so that the one that is not is believed to be lost.
  const auto node = [&](const std::string& name, const std::string& ready) {
    agents.process->cache.node_sink().Take(
        {Kind::kApply,
         {{"metadata", {{"name", name}, {"uid", name}}},
          {"status", {{"conditions", {{{"type", "Ready"}, {"status", ready}}}}}}}});
  };
  for (const char* name : {"node-a", "node-b", "node-c", "node-d"}) node(name, "True");
  node("node-b", "Unknown");
  CHECK(keepers(report) == std::set<std::string>{"demo-0", "demo-1"});
  node("node-b", "True");
  CHECK(keepers(report) == all);

  Json elsewhere = agents.Report("demo-0");
  elsewhere["namespace"] = "other";
  Json pod = PodJson(agents.api, "demo-0");
  pod["metadata"]["namespace"] = "other";
  agents.process->cache.pod_sink().Take({Kind::kApply, pod});
  CHECK(keepers(elsewhere) == std::set<std::string>{"demo-0"});
  CHECK(keepers(report) == all);
}

TEST_CASE("load is heard of and not written to the API server") {
  ReportingAgents agents;
  Json report = agents.Report("demo-0");
  report["load"] = {{"running", 3}, {"waiting", 1}};
  REQUIRE(agents.Send(report).status == 200);
  agents.process->Sync();
  const std::size_t applies = agents.Applies();
  report["load"] = {{"running", 9}, {"waiting", 0}};
  REQUIRE(agents.Send(report).status == 200);
  report.erase("load");
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == applies);
  CHECK(PodJson(agents.api, "demo-0").dump().find("waiting") == std::string::npos);
  const std::string uid = report["podUid"];
  const auto loads = agents.process->loads;
  REQUIRE(loads.size() == 3);
  CHECK(loads[0] == PodLoad{.ns = "default",
                            .pod = "demo-0",
                            .uid = uid,
                            .load = EngineLoad{.running = 3, .waiting = 1}});
  CHECK(loads[1].load == EngineLoad{.running = 9, .waiting = 0});
  CHECK_FALSE(loads[2].load);

  // Nor of somebody who is not who it says.
  report["podUid"] = "other";
  CHECK(agents.Send(report).status == 404);
  CHECK(agents.process->loads.size() == 3);
}

TEST_CASE("an agent is told when nobody will come to have weights") {
  ReportingAgents agents;
  const auto expecting = [&](const char* pod) {
    Json report = agents.Report(pod, "Pulling");
    report["weights"] = nullptr;
    const auto assignment = AssignmentFromJson(Json::parse(agents.Send(report).body));
    REQUIRE(assignment.ok());
    agents.process->Sync();
    return assignment->expecting;
  };
  // The others start from storage.
  CHECK(expecting("demo-0"));
  for (const char* pod : {"demo-1", "demo-2"}) {
    Json report = agents.Report(pod, "Failed");
    report["weights"] = nullptr;
    REQUIRE(agents.Send(report).status == 200);
  }
  agents.process->Sync();
  CHECK_FALSE(expecting("demo-0"));
}

TEST_CASE("a report that says nothing new is not written again") {
  ReportingAgents agents;
  Json report = agents.Report("demo-0", "Pulling");
  report["weights"] = nullptr;
  REQUIRE(agents.Send(report).status == 200);
  agents.process->Sync();
  CHECK(agents.Applies() == 1);
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == 1);
  report["bytesBySource"]["peer"] = 1000;  // Bytes that merely grow are not worth a write.
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == 1);
  report["state"] = "Serving";
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == 2);
  CHECK(PodJson(agents.api, "demo-0")["metadata"]["annotations"]["rouse.dev/bytes-by-source"] ==
        R"({"peer":1000,"storage":9})");
  agents.process->Sync();
  report["bytesBySource"]["peer"] = 2000;  // Once it serves they are final.
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == 3);
}

TEST_CASE("a fallback from RDMA reaches the instance, and goes with the report that has none") {
  ReportingAgents agents;
  Json report = agents.Report("demo-0");
  report["transportFallback"] = "this node has mlx5_0:1";
  REQUIRE(agents.Send(report).status == 200);
  const auto instance = plan::InstanceFromPod(PodJson(agents.api, "demo-0"));
  REQUIRE(instance.ok());
  CHECK(instance->transport_fallback == "this node has mlx5_0:1");
  agents.process->Sync();
  report["transportFallback"] = "";
  REQUIRE(agents.Send(report).status == 200);
  // It is written again, without: an API server takes away what an apply leaves out.
  CHECK(agents.Applies() == 2);
  const auto sent = AgentReportFromJson(report);
  REQUIRE(sent.ok());
  CHECK_FALSE(ReportAnnotations(*sent).contains(api::kAnnotationTransportFallback));
}

TEST_CASE("where caches came from and which were not used reaches the instance") {
  ReportingAgents agents;
  Json report = agents.Report("demo-0");
  report["stateOrigin"] = "from demo-1";
  report["stateMiss"] = "fx_graph missed";
  const auto response = agents.Send(report);
  REQUIRE(response.status == 200);
  const Json pod = PodJson(agents.api, "demo-0");
  CHECK(pod["metadata"]["annotations"]["rouse.dev/state-origin"] == "from demo-1");
  CHECK(plan::InstanceFromPod(pod)->state_miss == "fx_graph missed");
  agents.process->Sync();
  REQUIRE(agents.Send(report).status == 200);
  CHECK(agents.Applies() == 1);
}

TEST_CASE("what a later report leaves out is taken from the pod") {
  AgentReport report;
  report.state = AgentState::kServing;
  report.weights = WeightsReport{.servable = true};
  CHECK(ReportAnnotations(report).contains("rouse.dev/weights"));
  plan::Instance pod;
  pod.reported = ReportAnnotations(report);
  CHECK_FALSE(NeedsWrite(pod, report));
  report.weights.reset();
  CHECK_FALSE(ReportAnnotations(report).contains("rouse.dev/weights"));
  CHECK(NeedsWrite(pod, report));
}

TEST_CASE("a report of a pod that is not there, or was another, is NotFound and changes nothing") {
  ReportingAgents agents;
  Json report = agents.Report("demo-0");
  report["podUid"] = "of-its-predecessor";
  auto response = agents.Send(report);
  CHECK(response.status == 404);
  CHECK(Code(response) == "NotFound");
  CHECK(response.body.find("default/demo-0") != std::string::npos);
  report["pod"] = "stranger";
  CHECK(agents.Send(report).status == 404);

  agents.api.Put(kube::Pods(), {{"metadata",
                                 {{"name", "loose"},
                                  {"namespace", "default"},
                                  {"labels", {{"rouse.dev/modelservice", "demo"}}}}}});
  agents.process->Sync();
  report["pod"] = "loose";
  report["podUid"] = PodJson(agents.api, "loose")["metadata"]["uid"];
  CHECK(agents.Send(report).status == 404);
  CHECK(agents.Applies() == 0);
}

TEST_CASE("an agent may not send others to an address that is not its own") {
  ReportingAgents agents;
  for (const char* address :
       {"https://10.0.0.1:7411", "https://10.0.0.0", "https://10.0.0.0.evil:7411",
        "http://10.0.0.0:7411", "https://evil"}) {
    Json report = agents.Report("demo-0");
    report["address"] = address;
    const auto response = agents.Send(report);
    INFO(address);
    CHECK(response.status == 400);
    CHECK(response.body.find("address") != std::string::npos);
  }
  CHECK(agents.Applies() == 0);
}

TEST_CASE("a report is taken from the agent of its pod, and from nobody else") {
  ReportingAgents agents;
  const Json report = agents.Report("demo-0");
  const std::string uid = report["podUid"];
  for (const std::optional<tls::Identity>& sender : std::vector<std::optional<tls::Identity>>{
           std::nullopt, tls::Operator(), tls::Agent("default", "demo-1", uid),
           tls::Agent("other", "demo-0", uid), tls::Agent("default", "demo-0", uid + "-before")}) {
    const auto response = agents.SendText(report.dump(), sender);
    INFO(response.body);
    CHECK(response.status == 403);
    CHECK(Code(response) == "PermissionDenied");
  }
  CHECK(agents.Applies() == 0);
  CHECK(agents.process->loads.empty());
  CHECK(agents.Send(report).status == 200);
}

TEST_CASE("nonsense is refused by name, and never written") {
  ReportingAgents agents;
  const auto with = [&](const char* pointer, const Json& value) {
    Json report = agents.Report("demo-0");
    report[Json::json_pointer(pointer)] = value;
    return agents.Send(report);
  };
  CHECK(agents.SendText("{").status == 400);
  CHECK(agents.SendText("").status == 400);
  CHECK(agents.SendText("[]").status == 400);
  CHECK(agents.SendText(std::string(1 << 20, ' ')).status == 507);
  CHECK(with("/version", 2).status == 412);
  CHECK(with("/protocol", "rouse-weights").status == 412);
  CHECK(with("/state", "Dreaming").body.find("state: unknown value") != std::string::npos);
  CHECK(with("/weights/form", "Raw").body.find("weights.form") != std::string::npos);
  CHECK(with("/bytesBySource", nullptr).body.find("bytesBySource") != std::string::npos);
  CHECK(with("/message", std::string(5000, 'x')).body.find("message") != std::string::npos);
  CHECK(agents.Applies() == 0);
}

TEST_CASE("a report that the API server does not take is to be sent again") {
  ReportingAgents agents;
  Status refusal;
  agents.api.SetHook([&](const std::string& verb, const std::string&) {
    return verb == "apply" ? refusal : Status();
  });
  refusal = Unavailable("apply pod default/demo-0: connection refused");
  CHECK(agents.Send(agents.Report("demo-0")).status == 503);
  refusal = FailedPrecondition("forbidden");
  CHECK(agents.Send(agents.Report("demo-0")).status == 503);
  refusal = NotFound("pods \"demo-0\" not found");
  CHECK(agents.Send(agents.Report("demo-0")).status == 404);
  // Also a writer that was quicker: a changed uid has been refused by then.
  refusal = Status(StatusCode::kConflict, "the object has been modified");
  const auto response = agents.Send(agents.Report("demo-0"));
  CHECK(response.status == 503);
  CHECK(response.body.find("report again") != std::string::npos);
}
