#include <catch2/catch.hpp>

#include "common/node_facts.h"
#include "common/tls/x509.h"
#include "operator/kubectl/doctor.h"
#include "operator/tests/kubectl_world.h"

using namespace rouse;
using namespace rouse::kubectl;
using namespace rouse::kubectl::testing;
using Level = Finding::Level;
using std::chrono::days;
using std::chrono::seconds;

namespace {

const Status kForbidden = FailedPrecondition("list secrets: may not");

// PEM of an authority from `begin` to `end` days after now.
std::string Authority(int begin, int end) {
  const auto now = std::chrono::floor<seconds>(kNow);
  const auto key = tls::Key::Generate();
  REQUIRE(key.ok());
  const auto made = tls::MakeAuthority(*key, "test", {now + days(begin), now + days(end)});
  REQUIRE(made.ok());
  return made->ToPem();
}

Json Bundle(const std::string& pem) {
  return {{"data", {{api::kTrustBundleKey, pem}}}};
}

Json Lease(std::int64_t age) {
  return {{"spec",
           {{"holderIdentity", "operator-0_6711882057fe0959"},
            {"leaseDurationSeconds", 15},
            {"renewTime", api::FormatMicros(kNow - seconds(age))}}}};
}

Json Deployment(int wanted, int ready, const std::string& image) {
  return {
      {"metadata", {{"namespace", "rouse-system"}, {"name", "rouse-operator"}}},
      {"spec",
       {{"replicas", wanted},
        {"template", {{"spec", {{"containers", {{{"name", "operator"}, {"image", image}}}}}}}}}},
      {"status", {{"readyReplicas", ready}}}};
}

// A CustomResourceDefinition that knows every field but those of `without`.
Json Crd(const std::vector<std::string>& without = {}) {
  std::function<Json(const Json&)> schema = [&](const Json& value) -> Json {
    if (value.is_array()) return {{"items", value.empty() ? Json::object() : schema(value[0])}};
    if (!value.is_object()) return Json::object();
    Json properties = Json::object();
    for (const auto& [key, member] : value.items()) {
      if (std::find(without.begin(), without.end(), key) == without.end()) {
        properties[key] = schema(member);
      }
    }
    return {{"properties", properties}};
  };
  api::ServiceStatus status;
  status.last_failure = status.last_guard_failure = kNow;
  status.conditions.emplace_back();
  status.scale_outs.emplace_back().phases.emplace_back();
  api::Spec spec;
  spec.engine.image_pull_policy = "Always";
  spec.fast_start.capture_mode = api::CaptureMode::kLazy;
  Json full = ToJson(spec);
  full["model"]["storage"]["hostPath"] = {{"path", ""}};
  const Json properties = {{"spec", schema(full)}, {"status", schema(ToJson(status))}};
  return {{"spec",
           {{"versions",
             {{{"name", "v1alpha1"},
               {"served", true},
               {"schema", {{"openAPIV3Schema", {{"properties", properties}}}}}}}}}},
          {"status", {{"conditions", {{{"type", "Established"}, {"status", "True"}}}}}}};
}

Json Claim(const std::string& phase) {
  return {{"metadata", {{"name", "models"}}}, {"status", {{"phase", phase}}}};
}

// All as it should be.
Evidence Healthy() {
  Evidence evidence;
  evidence.crd = Crd();
  evidence.deployments = std::vector<Json>{Deployment(2, 2, "r:5000/rouse-operator:0.1.0")};
  evidence.operator_namespace = "rouse-system";
  evidence.lease = Lease(3);
  evidence.services = {View(Content(1), {Serving("demo-0", 600)})};
  NamespaceEvidence& ns = evidence.namespaces["default"];
  ns.trust = Bundle(Authority(-10, 80));
  ns.claims = std::vector<Json>{Claim("Bound")};
  ns.pod_warnings = std::vector<Json>{};
  return evidence;
}

std::vector<Finding> Worse(const Evidence& evidence) {
  auto findings = Diagnose(evidence, "0.1.0 (abc)", kNow);
  std::erase_if(findings, [](const Finding& f) { return f.level < Level::kWarning; });
  return findings;
}

Finding Only(const Evidence& evidence) {
  const auto findings = Worse(evidence);
  INFO(DoctorText(findings, kPlain));
  REQUIRE(findings.size() == 1);
  return findings.front();
}

bool Says(const Finding& finding, const std::string& text) {
  INFO(finding.text);
  return finding.text.find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("a healthy cluster has no findings but what cannot be checked", "[kubectl]") {
  const auto findings = Diagnose(Healthy(), "0.1.0 (abc)", kNow);
  CHECK("\n" + DoctorText(findings, kPlain) == R"(
ok  CustomResourceDefinition  v1alpha1 is served, and has all fields that this program knows
ok  operator                  Deployment rouse-system/rouse-operator: 2 of 2 ready
ok  operator                  operator-0 leads
ok  namespace default         1 certificate authority trusted, good until 2027-04-05T08:00:00Z
ok  default/demo              1 of 1 instance serves, nothing is amiss
ok  default/demo              claim models is bound
?   node node-a               NICs, GPUs and driver: no agent there has told of them yet
                              -> wait for a report; an agent of an older release tells of them in its log only
)");
  CHECK(ErrorsIn(findings) == 0);
}

TEST_CASE("a definition that is missing, unserved, or of an older release is found", "[kubectl]") {
  Evidence evidence = Healthy();
  evidence.crd = NotFound("404");
  CHECK(Only(evidence).level == Level::kError);
  evidence.crd = Crd({"guards", "consecutiveGuardFailures"});
  CHECK(
      FieldsMissingFrom(*evidence.crd) ==
      std::vector<std::string>{"spec.guards", "status.consecutiveGuardFailures", "status.guards"});
  CHECK(Only(evidence).level == Level::kWarning);
  CHECK(Says(Only(evidence), "drops spec.guards"));
  Json crd = Crd();
  crd["spec"]["versions"][0]["served"] = false;
  evidence.crd = crd;
  CHECK(Says(Only(evidence), "does not serve v1alpha1"));
  evidence.crd = kForbidden;
  CHECK(Worse(evidence).empty());
}

TEST_CASE("an operator that does not run or lead is found", "[kubectl]") {
  Evidence evidence = Healthy();
  evidence.deployments = std::vector<Json>{Deployment(2, 0, "rouse-operator:0.1.0")};
  CHECK(Only(evidence).level == Level::kError);
  evidence.deployments = std::vector<Json>{Deployment(2, 2, "r:5000/rouse-operator:0.2.0")};
  CHECK(Says(Only(evidence), "its image is 0.2.0, this kubectl-rouse is 0.1.0"));
  evidence.deployments = std::vector<Json>{Deployment(2, 2, "r:5000/rouse-operator@sha256:12")};
  CHECK(Worse(evidence).empty());
  evidence.deployments = std::vector<Json>{};
  CHECK(Says(Only(evidence), "no Deployment"));

  evidence = Healthy();
  evidence.lease = Lease(40);
  CHECK(Says(Only(evidence), "nobody leads: operator-0 renewed the lease 40 s ago"));
  evidence.lease = Json{{"spec", {{"holderIdentity", ""}}}};
  CHECK(Says(Only(evidence), "given back"));
  evidence.lease = NotFound("404");
  CHECK(Says(Only(evidence), "no Lease"));
  evidence.lease = kForbidden;
  CHECK(Worse(evidence).empty());
}

TEST_CASE("authorities that have ended, end, or are not there are found", "[kubectl]") {
  Evidence evidence = Healthy();
  Result<Json>& trust = evidence.namespaces["default"].trust;
  trust = Bundle(Authority(-90, -1));
  CHECK(Only(evidence).level == Level::kError);
  CHECK(Says(Only(evidence), "have ended"));
  trust = Bundle(Authority(-80, 10));
  CHECK(Only(evidence).level == Level::kWarning);
  trust = Bundle(Authority(-80, 10) + Authority(-1, 89));
  CHECK(Worse(evidence).empty());
  trust = Bundle("nonsense");
  CHECK(Says(Only(evidence), "no certificate"));
  trust = NotFound("404");
  CHECK(Only(evidence).level == Level::kError);
  trust = kForbidden;
  CHECK(Worse(evidence).empty());
}

TEST_CASE("conditions and instances become findings with a remedy", "[kubectl]") {
  Evidence evidence = Healthy();
  Json service = WithCondition(ServiceJson(1), "Degraded", true, "ActionFailed", "exceeded quota");
  evidence.services = {View(service, {Serving("demo-0", 600)})};
  CHECK(Says(Only(evidence), "Degraded ActionFailed: exceeded quota"));
  CHECK_FALSE(Only(evidence).remedy.empty());

  // Each instance tells of its own network; the condition would repeat the first.
  service = WithCondition(ServiceJson(2), "Degraded", true, "TransportFallback", "demo-0: slow");
  const auto slow = [](const std::string& name) {
    return Annotated(Serving(name, 600), api::kAnnotationTransportFallback, "no memory locked");
  };
  evidence.services = {View(service, {slow("demo-0"), slow("demo-1")})};
  CHECK(Worse(evidence).size() == 2);
  CHECK(Worse(evidence)[1].subject == "default/demo-1");
  evidence.services = {View(service, {Serving("demo-0", 600), Serving("demo-1", 600)})};
  CHECK(Says(Only(evidence), "Degraded TransportFallback: demo-0: slow"));

  Json silent = Pod("demo-0", "", 600);
  silent["status"]["startTime"] = api::FormatSeconds(kNow - seconds(300));
  evidence.services = {View(Content(1), {silent})};
  CHECK(Says(Only(evidence), "has not reported since the node took it, 5 min ago"));
  silent["status"]["startTime"] = api::FormatSeconds(kNow - seconds(30));
  evidence.services = {View(Content(1), {silent})};
  CHECK(Worse(evidence).empty());
}

TEST_CASE("storage and mounts that are missing are found", "[kubectl]") {
  Evidence evidence = Healthy();
  NamespaceEvidence& ns = evidence.namespaces["default"];
  ns.claims = std::vector<Json>{Claim("Pending")};
  CHECK(Says(Only(evidence), "claim models is Pending"));
  ns.claims = std::vector<Json>{};
  CHECK(Says(Only(evidence), "claim models of spec.model.storage is not there"));
  ns.claims = kForbidden;
  CHECK(Worse(evidence).empty());

  evidence = Healthy();
  evidence.services = {View(Content(1), {Pod("demo-0", "", 60)})};
  evidence.namespaces["default"].pod_warnings = std::vector<Json>{
      {{"regarding", {{"kind", "Pod"}, {"name", "demo-0"}, {"uid", "uid-demo-0"}}},
       {"type", "Warning"},
       {"reason", "FailedMount"},
       {"note", "hostPath type check failed"},
       {"eventTime", api::FormatMicros(kNow - seconds(5))}}};
  CHECK(Says(Only(evidence), "FailedMount: hostPath type check failed"));
  // It has got over it.
  evidence.services = {View(Content(1), {Serving("demo-0", 60)})};
  CHECK(Worse(evidence).empty());
}

TEST_CASE("findings name no control characters, and their JSON each level", "[kubectl]") {
  const std::vector<Finding> findings = {{Level::kError, "a\x1b", "b\x1b", "c\x1b"}};
  CHECK(DoctorText(findings, kPlain).find('\x1b') == std::string::npos);
  CHECK(ToJson(findings)["findings"][0]["level"] == "Error");
}

namespace {

/// What is said of node-a when its agent has told these facts.
std::vector<Finding> OfNode(const NodeFacts& facts, std::uint64_t weights = 0) {
  Evidence evidence = Healthy();
  plan::Instance& instance = evidence.services[0].instances.at(0);
  instance.reported[api::kAnnotationNodeFacts] = json::Canonical(ToJson(facts));
  instance.weights = WeightsReport{.bytes = weights};
  std::vector<Finding> found = Diagnose(evidence, "0.1.0 (abc)", kNow);
  std::erase_if(found, [](const Finding& finding) { return finding.subject != "node node-a"; });
  return found;
}

int Worse(const std::vector<Finding>& findings) {
  return static_cast<int>(std::count_if(findings.begin(), findings.end(), [](const Finding& one) {
    return one.level == Level::kWarning && !one.remedy.empty();
  }));
}

}  // namespace

TEST_CASE("of a node with GPUs and RDMA it is said what weights go by", "[kubectl]") {
  NodeFacts facts{.rdma = {{"mlx5_0:1", true, true, 400}, {"mlx5_1:1", true, true, 400}},
                  .gpu_driver = "580.159.04",
                  .gpus = 8,
                  .peer_memory = true};
  const auto good = OfNode(facts, 61u << 30);
  CHECK(Worse(good) == 0);
  REQUIRE(good.size() == 4);
  CHECK(Says(good[0], "RDMA by mlx5_0:1 (400 Gbit/s), mlx5_1:1 (400 Gbit/s)"));
  CHECK(Says(good[1], "NVIDIA driver 580.159.04, agents see 8 GPUs"));
  CHECK(Says(good[2], "GPUDirect RDMA is not used, module nvidia_peermem is loaded"));
  CHECK(Says(good[3], "agents of the node copy weights from each other"));

  SECTION("a port that agents may not open, and one without a link") {
    facts.rdma[0].accessible = false;
    facts.rdma[1].active = false;
    const auto found = OfNode(facts);
    CHECK(Worse(found) == 2);
    CHECK(Says(found[0], "agents may not open mlx5_0:1"));
    CHECK(found[0].remedy.find("agent.rdma.resourceName") != std::string::npos);
    CHECK(Says(found[1], "no link at mlx5_1:1"));
  }
  SECTION("less memory to lock than the weights take") {
    facts.locked_memory = 8 << 20;
    const auto found = OfNode(facts, 61u << 20);
    CHECK(Worse(found) == 1);
    CHECK(Says(found[1], "agents may lock 8 MiB, and RDMA moves weights of 61 MiB"));
    CHECK(Worse(OfNode(facts, 8u << 20)) == 0);
  }
  SECTION("GPUs that agents do not see") {
    facts.gpus = 0;
    const auto found = OfNode(facts);
    CHECK(Worse(found) == 1);
    CHECK(Says(found[1], "agents see no GPU: weights are kept in host memory"));
  }
  SECTION("no folder that they share") {
    facts.node_folder_problem = "there is none";
    const auto found = OfNode(facts);
    CHECK(Worse(found) == 1);
    CHECK(found[3].remedy.find("agent.nodeFolder") != std::string::npos);
  }
}

TEST_CASE("a node without devices is none to warn of", "[kubectl]") {
  const auto found = OfNode({.node_folder_problem = "there is none"});
  CHECK(Worse(found) == 0);
  REQUIRE(found.size() == 3);
  CHECK(Says(found[0], "no RDMA device"));
  CHECK(Says(found[1], "no NVIDIA driver is loaded"));
}
