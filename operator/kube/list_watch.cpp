#include "operator/kube/list_watch.h"

#include <algorithm>
#include <utility>

#include "common/json.h"

namespace rouse::kube {
namespace {

constexpr int kFruitlessLimit = 2;
// A watch that ends in order but sooner than this, with nothing delivered, is a failure: a server
// that is shutting down would else be asked without a pause.
constexpr std::chrono::milliseconds kShortWatch{1'000};
constexpr std::chrono::milliseconds kMaxServerDelay{60'000};
constexpr std::size_t kMaxPageBytes = 256u << 20;
constexpr std::size_t kMaxEventBytes = 64u << 20;
// Who set which field: half of a pod's text, and never read.
constexpr std::string_view kWriters = "managedFields";

// Empty when `object` can be stored, else what is wrong with it.
std::string Problem(const Resource& resource, const Json& object) {
  if (!object.is_object()) return "object is no JSON object";
  const std::string kind = StringAt(object, "kind");
  if (!kind.empty() && kind != resource.kind) {
    return "object is a " + kind + ", expected a " + resource.kind;
  }
  const ObjectName name = NameOf(object);
  if (name.name.empty()) return "object without metadata.name";
  if (resource.namespaced && name.ns.empty()) return "object without metadata.namespace";
  if (MetaString(object, "resourceVersion").empty())
    return "object without metadata.resourceVersion";
  return {};
}

// Listing again can help: the version is too old, malformed, or from a future that a restored
// backup does not know.
bool NeedsRelist(const ApiError& error) {
  return error.IsGone() || error.http_status == 400 ||
         error.message.find("Too large resource version") != std::string::npos;
}

}  // namespace

ListWatch::ListWatch(Resource resource, ListWatchOptions options)
    : resource_(std::move(resource)), options_(options) {}

Command ListWatch::Next(double jitter) {
  if (state_ == State::kEmpty) {
    state_ = State::kListing;
    continue_token_.clear();
  }
  Command command;
  const bool first_page = state_ == State::kListing && continue_token_.empty();
  const int waits = first_page ? std::max(failures_, fruitless_lists_) : failures_;
  command.delay = std::max(BackoffDelay(options_.backoff, waits, jitter), server_delay_);
  if (state_ == State::kListing) {
    if (first_page) ++counters_.lists;
    command.kind = Command::Kind::kListPage;
    command.continue_token = continue_token_;
    return command;
  }
  ++counters_.watches;
  progress_ = false;
  garbage_ = false;
  error_event_.reset();
  command.kind = Command::Kind::kWatch;
  command.resource_version = resource_version_;
  command.timeout =
      options_.watch_timeout +
      std::chrono::seconds(static_cast<std::int64_t>(
          static_cast<double>(options_.watch_timeout.count()) * std::clamp(jitter, 0.0, 1.0)));
  return command;
}

std::vector<StoreEvent> ListWatch::OnPage(std::string_view text) {
  std::vector<StoreEvent> events;
  if (state_ != State::kListing) return events;
  auto parsed = json::Parse(text, "list of " + resource_.plural, kMaxPageBytes,
                            json::Omit{.key = kWriters, .depth = 4});  // items[].metadata
  Json page = parsed.ok() ? *std::move(parsed) : Json();
  const std::string version = MetaString(page, "resourceVersion");
  const std::string next = MetaString(page, "continue");
  const auto items = page.is_object() ? page.find("items") : page.end();
  const bool is_list = items != page.end() && (items->is_array() || items->is_null());
  // The same token again would go round for ever.
  bool readable = is_list && !version.empty() && (next.empty() || next != continue_token_);
  if (readable) {
    for (const Json& item : *items) readable = readable && Problem(resource_, item).empty();
  }
  if (!readable) {
    ++counters_.garbage;
    Fail(std::nullopt);
    return events;
  }
  failures_ = 0;
  server_delay_ = {};
  events.reserve(items->size() + 2);
  if (continue_token_.empty()) events.push_back({StoreEvent::Kind::kInitBegin, nullptr});
  for (Json& item : *items) {
    item["apiVersion"] = resource_.ApiVersion();
    item["kind"] = resource_.kind;
    events.push_back({StoreEvent::Kind::kInitApply, std::move(item)});
  }
  continue_token_ = next;
  if (next.empty()) {
    events.push_back({StoreEvent::Kind::kInitDone, nullptr});
    resource_version_ = version;
    fruitless_ = 0;
    state_ = State::kWatching;
  }
  return events;
}

void ListWatch::OnPageFailed(const std::optional<ApiError>& error) {
  if (state_ != State::kListing) return;
  if (error && error->IsGone()) ++counters_.gone;
  if (error && NeedsRelist(*error) && !continue_token_.empty()) {
    Relist();
    return;
  }
  Fail(error);
}

Status ListWatch::OnLine(std::string_view line, std::vector<StoreEvent>* events) {
  if (state_ != State::kWatching) return Internal("watch line while not watching");
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n' || line.back() == ' ')) {
    line.remove_suffix(1);
  }
  if (line.empty()) return {};
  auto parsed = json::Parse(line, "watch event of " + resource_.plural, kMaxEventBytes,
                            json::Omit{.key = kWriters, .depth = 3});  // object.metadata
  if (!parsed.ok()) return Garbage(parsed.status().message());
  if (!parsed->is_object()) return Garbage("event is no JSON object");
  const std::string type = StringAt(*parsed, "type");
  const auto object = parsed->find("object");
  if (object == parsed->end()) return Garbage("event without object");

  if (type == "ERROR") {
    error_event_ = DecodeStatusObject(*object);
    return error_event_->ToStatus("watch " + resource_.plural);
  }
  if (type == "BOOKMARK") {
    const std::string version = MetaString(*object, "resourceVersion");
    if (version.empty()) return Garbage("bookmark without metadata.resourceVersion");
    Progress(version);
    return {};
  }
  const bool removed = type == "DELETED";
  if (!removed && type != "ADDED" && type != "MODIFIED") {
    return Garbage("unknown event type \"" + type.substr(0, 40) + "\"");
  }
  if (const std::string problem = Problem(resource_, *object); !problem.empty()) {
    return Garbage(problem);
  }
  Progress(MetaString(*object, "resourceVersion"));
  events->push_back(
      {removed ? StoreEvent::Kind::kDelete : StoreEvent::Kind::kApply, std::move(*object)});
  return {};
}

void ListWatch::OnWatchEnded(StreamEnd end, std::chrono::milliseconds lived,
                             const std::optional<ApiError>& error) {
  if (state_ != State::kWatching) return;
  const std::optional<ApiError>& refusal = error_event_ ? error_event_ : error;
  if (refusal) {
    if (refusal->IsGone()) ++counters_.gone;
    if (NeedsRelist(*refusal)) {
      Relist();
    } else {
      Fail(refusal);
    }
    return;
  }
  if (end == StreamEnd::kClosed && !garbage_) {
    if (!progress_ && lived < kShortWatch) return Fail(std::nullopt);
    failures_ = 0;
    server_delay_ = {};
    return;
  }
  ++counters_.broken;
  Fail(std::nullopt);
  // Losing the connection says nothing about the version we ask for; nonsense and silence may:
  // after etcd was restored from a backup a server accepts our version of the future and waits for
  // it.
  if (!progress_ && (garbage_ || end == StreamEnd::kSilent) && ++fruitless_ >= kFruitlessLimit) {
    Relist();
  }
}

void ListWatch::Relist() {
  state_ = State::kListing;
  continue_token_.clear();
  failures_ = 0;
  fruitless_ = 0;
  ++fruitless_lists_;
}

void ListWatch::Progress(const std::string& version) {
  resource_version_ = version;
  progress_ = true;
  failures_ = 0;
  fruitless_ = 0;
  fruitless_lists_ = 0;
  server_delay_ = {};
}

void ListWatch::Fail(const std::optional<ApiError>& error) {
  ++failures_;
  server_delay_ = {};
  if (error && error->retry_after) {
    server_delay_ = std::min<std::chrono::milliseconds>(*error->retry_after, kMaxServerDelay);
  }
}

Status ListWatch::Garbage(const std::string& problem) {
  ++counters_.garbage;
  garbage_ = true;
  return DataLoss("watch " + resource_.plural + ": " + problem +
                  "; the watch is begun anew from version " + resource_version_);
}

}  // namespace rouse::kube
