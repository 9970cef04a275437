#include "operator/actuate/reports.h"

#include <map>

#include "common/host_in_url.h"
#include "common/log.h"
#include "common/messages.h"
#include "common/sha256.h"
#include "operator/api/names.h"
#include "operator/plan/load.h"
#include "operator/plan/source.h"

namespace rouse::actuate {
namespace {

constexpr std::size_t kMaxReport = 256 << 10;
// Each write holds a library thread; the rest of them must stay free for what answers the writes.
constexpr int kMaxWrites = 8;

Status NotOurs(const AgentReport& report, const std::string& why) {
  return NotFound("pod " + report.pod_namespace + "/" + report.pod + ": " + why);
}

// An agent may only name itself as a source: others are sent to this address.
Status CheckAddress(const AgentReport& report, const plan::Instance& pod) {
  if (report.address.empty() || pod.ip.empty()) return Status();
  if (report.address.starts_with("https://" + HostInUrl(pod.ip) + ":")) return Status();
  return InvalidArgument("address: " + report.address +
                         " is not an address of the pod, whose IP is " + pod.ip);
}

// Whose report it is says the certificate; what the report says of that is only compared.
Status CheckSender(const AgentReport& report, const tls::Identity& sender) {
  if (sender == tls::Agent(report.pod_namespace, report.pod, report.pod_uid)) return Status();
  return PermissionDenied("the report is of pod " + report.pod_namespace + "/" + report.pod +
                          ", uid " + report.pod_uid + ", but comes from " + tls::Describe(sender) +
                          (sender.pod_uid.empty() ? "" : ", uid " + sender.pod_uid));
}

}  // namespace

std::map<std::string, std::string> ReportAnnotations(const AgentReport& report) {
  std::map<std::string, std::string> out = {
      {api::kAnnotationAgentState, std::string(ToString(report.state))},
      {api::kAnnotationBytesBySource, json::Canonical(ToJson(report.bytes_by_source))}};
  if (!report.message.empty()) out[api::kAnnotationAgentMessage] = report.message;
  if (!report.address.empty()) out[api::kAnnotationAgentAddress] = report.address;
  if (!report.transport.empty()) out[api::kAnnotationTransport] = report.transport;
  if (!report.transport_fallback.empty()) {
    out[api::kAnnotationTransportFallback] = report.transport_fallback;
  }
  if (!report.state_origin.empty()) out[api::kAnnotationStateOrigin] = report.state_origin;
  if (!report.state_miss.empty()) out[api::kAnnotationStateMiss] = report.state_miss;
  if (report.weights) out[api::kAnnotationWeights] = json::Canonical(ToJson(*report.weights));
  if (report.timeline) out[api::kAnnotationTimeline] = json::Canonical(ToJson(*report.timeline));
  if (report.node_facts) {
    out[api::kAnnotationNodeFacts] = json::Canonical(ToJson(*report.node_facts));
  }
  return out;
}

bool NeedsWrite(const plan::Instance& pod, const AgentReport& report) {
  auto said = ReportAnnotations(report);
  auto known = pod.reported;
  if (report.state != AgentState::kServing && report.state != AgentState::kFailed &&
      known.contains(api::kAnnotationBytesBySource)) {
    said.erase(api::kAnnotationBytesBySource);
    known.erase(api::kAnnotationBytesBySource);
  }
  return said != known;
}

std::int64_t ReportAfterMs(AgentState state, std::size_t agents) {
  switch (state) {
    case AgentState::kStarting:
    case AgentState::kHydrating:
    case AgentState::kPulling:
    case AgentState::kWaking:
      return 500;
    case AgentState::kReady:
    case AgentState::kLoading:
    case AgentState::kWarming:
    case AgentState::kSleeping:
      return 2'000;
    case AgentState::kServing:
    case AgentState::kAsleep:
    case AgentState::kFailed:
      return plan::QuietReport(agents).count();
  }
  return 2'000;
}

http::Response Reports::Handle(const http::Request& request) {
  auto assignment = Take(request);
  http::Response response = assignment.ok() ? http::JsonResponse(*std::move(assignment))
                                            : http::ErrorResponse(assignment.status());
  metrics_.Reported(response.status);
  return response;
}

// They are the same for all agents of the namespace, and most of each answer: to look at every pod
// for each report would take more time than all the rest of it.
std::shared_ptr<const Reports::Keepers> Reports::KeepersIn(const std::string& ns) {
  const std::uint64_t version = cache_.pods_version();  // First: what changes from now on is newer.
  {
    const std::lock_guard lock(mutex_);
    if (keepers_version_ != version) keepers_.clear();
    keepers_version_ = version;
    if (const auto found = keepers_.find(ns); found != keepers_.end()) return found->second;
  }
  const auto held = cache_.PodsIn(ns);
  std::vector<const plan::Instance*> pods;
  for (const auto& pod : held) pods.push_back(pod.get());
  const Json whole = ToJson(Assignment{.keepers = plan::KeepersOf(pods)});
  const auto list = whole.find("keepers");
  Keepers made;
  if (list != whole.end()) {
    made.list = json::Dump(*list);
    made.digest = Sha256Hex(made.list);
  }
  auto kept = std::make_shared<const Keepers>(std::move(made));
  const std::lock_guard lock(mutex_);
  if (keepers_version_ == version) keepers_[ns] = kept;
  return kept;
}

Result<std::string> Reports::Take(const http::Request& request) {
  if (!request.peer) {
    return PermissionDenied("a report needs the certificate of its pod: POST /v1/certificates");
  }
  ROUSE_ASSIGN_OR_RETURN(const Json body, json::Parse(request.body, "report", kMaxReport));
  ROUSE_ASSIGN_OR_RETURN(const AgentReport report, AgentReportFromJson(body));
  ROUSE_RETURN_IF_ERROR(CheckSender(report, *request.peer));
  const auto pod = cache_.Pod(kube::ObjectName{report.pod_namespace, report.pod}.Key());
  if (!pod || pod->owner_uid.empty()) return NotOurs(report, "not a pod of a ModelService");
  if (pod->uid != report.pod_uid) {
    return NotOurs(report, "its uid is " + pod->uid + ", the report is from " + report.pod_uid);
  }
  ROUSE_RETURN_IF_ERROR(CheckAddress(report, *pod));
  // First of all: load must not wait for the API server.
  on_load_({.ns = pod->ns, .pod = pod->name, .uid = pod->uid, .load = report.load});
  if (NeedsWrite(*pod, report)) {
    const Status written = Write(*pod, report);
    if (!written.ok()) {
      log::Warning("report not written", {{"pod", report.pod_namespace + "/" + report.pod},
                                          {"error", written.ToString()}});
      return written;
    }
  }

  const auto held = cache_.PodsOf(ServiceKey(*pod));
  std::vector<const plan::Instance*> others;
  for (const auto& other : held) others.push_back(other.get());
  const auto service = cache_.Service(ServiceKey(*pod));
  const auto keepers = KeepersIn(pod->ns);
  std::string answer = json::Dump(ToJson(
      Assignment{.path = pod->path,
                 .peers = plan::PeersFor(*pod, others),
                 .report_after_ms = ReportAfterMs(report.state, cache_.pod_count()),
                 .expecting = plan::IsExpecting(*pod, others, policy_, now_()),
                 .siblings = plan::SiblingsOf(*pod, others),
                 .keepers = {},  // As text, below.
                 .keepers_digest = keepers->digest,
                 .state_copies = service ? service->service.spec.fast_start.state_copies : 0}));
  if (!keepers->list.empty() && report.keepers_digest != keepers->digest) {
    answer.back() = ',';
    answer += "\"keepers\":" + keepers->list + "}";
  }
  return answer;
}

Status Reports::Write(const plan::Instance& pod, const AgentReport& report) {
  struct Slot {
    std::atomic<int>& count;
    const bool taken;
    explicit Slot(std::atomic<int>& c) : count(c), taken(c.fetch_add(1) < kMaxWrites) {}
    ~Slot() { --count; }
  } slot(writing_);
  if (!slot.taken) return Unavailable("too many reports at once: report again in a moment");

  const Json object = {{"apiVersion", "v1"},
                       {"kind", "Pod"},
                       {"metadata",
                        {{"name", pod.name},
                         {"namespace", pod.ns},
                         {"uid", pod.uid},  // Never onto a later pod of the same name.
                         {"annotations", ReportAnnotations(report)}}}};
  auto applied =
      api_.Apply(kube::Pods(), object,
                 {.field_manager = api::kFieldManagerReport, .force = true, .subresource = ""});
  if (applied.ok()) return Status();
  const std::string& why = applied.status().message();
  switch (applied.status().code()) {
    case StatusCode::kNotFound:
      return NotOurs(report, "it is gone: " + why);
    case StatusCode::kConflict:
      // Another writer was quicker. A pod that was replaced is refused by its uid the next time.
      return Unavailable("the pod was changed meanwhile: report again: " + why);
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
      return applied.status();
    default:
      return Unavailable("the API server refused the report: " + why);
  }
}

}  // namespace rouse::actuate
