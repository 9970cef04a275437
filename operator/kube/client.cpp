#include "operator/kube/client.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "common/json.h"
#include "operator/kube/token.h"

namespace rouse::kube {
namespace {

constexpr std::size_t kMaxObjectBytes = 64u << 20;

// An empty name would make a delete of one object a delete of all, and dots would walk up the path.
Status CheckName(const Resource& resource, const ObjectName& name, std::string_view verb) {
  const auto bad = [](const std::string& part) {
    return part.empty() || part == "." || part == "..";
  };
  if (bad(name.name) || (resource.namespaced && bad(name.ns))) {
    return InvalidArgument(std::string(verb) + " " + Describe(resource, name) +
                           ": an object needs a name" +
                           (resource.namespaced ? " and a namespace" : ""));
  }
  return {};
}

std::string Query(std::initializer_list<std::pair<std::string_view, std::string>> parameters) {
  std::string query;
  for (const auto& [key, value] : parameters) {
    if (value.empty()) continue;
    query += (query.empty() ? '?' : '&') + std::string(key) + "=" + http::UrlEncode(value);
  }
  return query;
}

std::string ListPath(const Resource& resource, const std::string& ns, const ListOptions& options,
                     const std::string& continue_token) {
  return resource.Path(ns) + Query({{"limit", std::to_string(std::max(options.page_size, 1))},
                                    {"continue", continue_token},
                                    {"labelSelector", options.label_selector},
                                    {"fieldSelector", options.field_selector}});
}

Json WithType(const Resource& resource, Json object) {
  object["apiVersion"] = resource.ApiVersion();
  object["kind"] = resource.kind;
  return object;
}

std::string HeaderOf(const http::Response& response, const std::string& name) {
  const auto it = response.headers.find(name);
  return it == response.headers.end() ? std::string() : it->second;
}

ApiError ErrorOf(const http::Response& response) {
  return DecodeError(response.status, response.body, HeaderOf(response, "Retry-After"));
}

std::string PlaceOf(const Resource& resource, const std::string& ns) {
  return resource.plural + (ns.empty() ? " of all namespaces" : " of namespace " + ns);
}

}  // namespace

struct Client::Impl {
  Impl(const Config& config, ClientOptions client_options)
      : server(config.server),
        secrets(config.secrets),
        token(config.token, config.token_file),
        options(std::move(client_options)) {}

  Result<http::Request> Prepare(std::string method, std::string target) {
    http::Request request;
    request.method = std::move(method);
    request.target = std::move(target);
    request.timeout = options.timeout;
    request.deadline = options.deadline;
    request.headers["Accept"] = "application/json";
    request.headers["User-Agent"] = options.user_agent;
    ROUSE_ASSIGN_OR_RETURN(const std::string bearer, token.Get());
    if (!bearer.empty()) request.headers["Authorization"] = "Bearer " + bearer;
    return request;
  }

  Status NotReached(const Status& status, const std::string& what) {
    return status.WithContext(what + ": no answer from the API server at " + server);
  }

  // False when waiting makes no sense (any more).
  bool WaitToRetry(const ApiError& error) {
    const auto wait = std::max<std::chrono::milliseconds>(
        error.retry_after.value_or(std::chrono::seconds(1)), std::chrono::milliseconds(1));
    if (wait > options.retry_wait) return false;
    std::unique_lock lock(mutex);
    return !stopped.wait_for(lock, wait, [this] { return stop; });
  }

  void NoteAnswer(const std::string& method, int code,
                  std::optional<std::chrono::steady_clock::time_point> begun) const {
    if (!options.on_answer) return;
    std::optional<double> seconds;
    if (begun) {
      const auto took = std::chrono::steady_clock::now() - *begun;
      seconds = std::chrono::duration<double>(took).count();
    }
    options.on_answer(method, code, seconds);
  }

  // Sends until there is an answer that stands.
  Result<http::Response> Send(const std::string& method, const std::string& target,
                              const std::string& body, const std::string& content_type,
                              const std::string& what) {
    bool new_token_tried = false;
    for (int attempt = 0;; ++attempt) {
      auto prepared = Prepare(method, target);
      if (!prepared.ok()) return prepared.status().WithContext(what);
      prepared->body = body;
      if (!content_type.empty()) prepared->headers["Content-Type"] = content_type;
      ++counters.requests;
      const auto begun = std::chrono::steady_clock::now();
      auto answer = http->Send(*prepared, kMaxObjectBytes);
      NoteAnswer(method, answer.ok() ? answer->status : 0, begun);
      if (!answer.ok()) {
        ++counters.errors;
        return NotReached(answer.status(), what);
      }
      if (answer->status < 300) return answer;
      ++counters.errors;
      if (answer->status == 429) ++counters.throttled;
      if (answer->status == 401 && !new_token_tried) {
        new_token_tried = true;
        const auto fresh = token.Get();
        if (fresh.ok() && !fresh->empty() &&
            "Bearer " + *fresh != prepared->headers["Authorization"]) {
          continue;
        }
      }
      const ApiError error = ErrorOf(*answer);
      if (!error.IsRetryable() || attempt >= options.retries || !WaitToRetry(error)) return answer;
    }
  }

  Result<Json> Call(const std::string& method, const std::string& target, const Json& body,
                    const std::string& content_type, const std::string& what) {
    ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                           Send(method, target, body.is_null() ? std::string() : json::Dump(body),
                                content_type, what));
    if (answer.status >= 300) return ErrorOf(answer).ToStatus(what);
    auto parsed = json::Parse(answer.body, "answer");
    if (!parsed.ok() || !parsed->is_object()) {
      return DataLoss(what + ": the answer is no JSON object; is " + server + " an API server?");
    }
    return parsed;
  }

  const std::string server;
  const std::shared_ptr<SecretFolder> secrets;  ///< Keeps the files that http's TLS reads.
  TokenSource token;
  const ClientOptions options;
  std::unique_ptr<http::Client> http;
  ClientCounters counters;
  std::mutex mutex;
  std::condition_variable stopped;
  bool stop = false;  ///< Guarded by mutex.
};

Result<std::unique_ptr<Client>> Client::Create(const Config& config, ClientOptions options) {
  auto impl = std::make_unique<Impl>(config, std::move(options));
  ROUSE_ASSIGN_OR_RETURN(impl->http, http::Client::Create(config.server, config.tls));
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

Result<Json> Client::Get(const Resource& resource, const ObjectName& name) {
  ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "get"));
  return impl_->Call("GET", resource.Path(name.ns, name.name), nullptr, "",
                     "get " + Describe(resource, name));
}

Result<ObjectList> Client::List(const Resource& resource, const std::string& ns,
                                const ListOptions& options) {
  // A list that is forgotten each time before its end needs larger pages, not more patience.
  constexpr int kRestarts = 3;
  const std::string what = "list " + PlaceOf(resource, ns);
  Status last;
  for (int restart = 0; restart <= kRestarts; ++restart) {
    ObjectList list;
    std::string token;
    while (true) {
      ROUSE_ASSIGN_OR_RETURN(
          const http::Response answer,
          impl_->Send("GET", ListPath(resource, ns, options, token), "", "", what));
      if (answer.status >= 300) {
        const ApiError error = ErrorOf(answer);
        last = error.ToStatus(what);
        if (error.IsGone() && !token.empty()) break;
        return last;
      }
      auto page = json::Parse(answer.body, what);
      if (!page.ok()) return DataLoss(page.status().message());
      const auto items = page->is_object() ? page->find("items") : page->end();
      if (items == page->end() || !(items->is_array() || items->is_null())) {
        return DataLoss(what + ": the answer has no list of items; is " + impl_->server +
                        " an API server?");
      }
      for (Json& item : *items) {
        if (item.is_object()) list.items.push_back(WithType(resource, std::move(item)));
      }
      list.resource_version = MetaString(*page, "resourceVersion");
      const std::string next = MetaString(*page, "continue");
      if (next.empty()) return list;
      if (next == token) return DataLoss(what + ": the server repeats a continue token");
      token = next;
    }
  }
  return last;
}

Result<Json> Client::Create(const Resource& resource, const Json& object) {
  const ObjectName name = NameOf(object);
  if (resource.named) ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "create"));
  return impl_->Call("POST", resource.Path(name.ns), WithType(resource, object), "application/json",
                     "create " + Describe(resource, name));
}

Result<Json> Client::Update(const Resource& resource, const Json& object) {
  const ObjectName name = NameOf(object);
  ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "update"));
  return impl_->Call("PUT", resource.Path(name.ns, name.name), WithType(resource, object),
                     "application/json", "update " + Describe(resource, name));
}

Result<Json> Client::Apply(const Resource& resource, const Json& object,
                           const ApplyOptions& options) {
  const ObjectName name = NameOf(object);
  ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "apply"));
  const std::string what = "apply " + Describe(resource, name);
  if (options.field_manager.empty()) return InvalidArgument(what + ": no field manager given");
  return impl_->Call("PATCH",
                     resource.Path(name.ns, name.name, options.subresource) +
                         Query({{"fieldManager", options.field_manager},
                                {"force", options.force ? "true" : "false"}}),
                     WithType(resource, object), "application/apply-patch+yaml", what);
}

Result<Json> Client::MergePatch(const Resource& resource, const ObjectName& name, const Json& patch,
                                const PatchOptions& options) {
  ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "patch"));
  std::string what = "patch " + Describe(resource, name);
  if (!options.subresource.empty()) what += " " + options.subresource;
  return impl_->Call(
      "PATCH",
      resource.Path(name.ns, name.name, options.subresource) +
          Query({{"fieldManager", options.field_manager}}),
      patch,
      options.strategic ? "application/strategic-merge-patch+json" : "application/merge-patch+json",
      what);
}

Status Client::Delete(const Resource& resource, const ObjectName& name,
                      const DeleteOptions& options) {
  ROUSE_RETURN_IF_ERROR(CheckName(resource, name, "delete"));
  Json body = {{"apiVersion", "v1"}, {"kind", "DeleteOptions"}};
  switch (options.propagation) {
    case Propagation::kBackground:
      body["propagationPolicy"] = "Background";
      break;
    case Propagation::kForeground:
      body["propagationPolicy"] = "Foreground";
      break;
    case Propagation::kOrphan:
      body["propagationPolicy"] = "Orphan";
      break;
  }
  if (!options.uid.empty()) body["preconditions"]["uid"] = options.uid;
  if (!options.resource_version.empty()) {
    body["preconditions"]["resourceVersion"] = options.resource_version;
  }
  if (options.grace) body["gracePeriodSeconds"] = options.grace->count();
  return impl_
      ->Call("DELETE", resource.Path(name.ns, name.name), body, "application/json",
             "delete " + Describe(resource, name))
      .status();
}

FetchedPage Client::FetchListPage(const Resource& resource, const std::string& ns,
                                  const ListOptions& options, const std::string& continue_token) {
  const std::string what = "list " + PlaceOf(resource, ns);
  auto request = impl_->Prepare("GET", ListPath(resource, ns, options, continue_token));
  if (!request.ok()) return {.text = request.status().WithContext(what), .error = {}};
  ++impl_->counters.requests;
  const auto begun = std::chrono::steady_clock::now();
  auto answer = impl_->http->Send(*request);
  impl_->NoteAnswer("GET", answer.ok() ? answer->status : 0, begun);
  if (!answer.ok()) {
    ++impl_->counters.errors;
    return {.text = impl_->NotReached(answer.status(), what), .error = {}};
  }
  if (answer->status >= 300) {
    ++impl_->counters.errors;
    if (answer->status == 429) ++impl_->counters.throttled;
    const ApiError error = ErrorOf(*answer);
    return {.text = error.ToStatus(what), .error = error};
  }
  return {.text = std::move(answer->body), .error = {}};
}

Status Client::Watch(const Resource& resource, const std::string& ns, const ListOptions& options,
                     const std::string& resource_version, std::chrono::seconds timeout,
                     std::chrono::milliseconds silence, const http::CancelSource& cancel,
                     const std::function<Status(std::string_view)>& on_line,
                     std::optional<ApiError>* error) {
  error->reset();
  const std::string what = "watch " + PlaceOf(resource, ns);
  auto request = impl_->Prepare(
      "GET", resource.Path(ns) + Query({{"watch", "true"},
                                        {"allowWatchBookmarks", "true"},
                                        {"resourceVersion", resource_version},
                                        {"timeoutSeconds", std::to_string(timeout.count())},
                                        {"labelSelector", options.label_selector},
                                        {"fieldSelector", options.field_selector}}));
  if (!request.ok()) return request.status().WithContext(what);
  request->timeout = silence;
  ++impl_->counters.requests;
  http::Response refused;
  refused.status = 0;
  Status status = impl_->http->Stream(*request, cancel, on_line, &refused);
  impl_->NoteAnswer("GET", status.ok() ? 200 : refused.status, std::nullopt);
  if (status.ok()) return status;
  if (refused.status != 0 && refused.status != 200) {
    ++impl_->counters.errors;
    if (refused.status == 429) ++impl_->counters.throttled;
    *error = ErrorOf(refused);
    return (*error)->ToStatus(what);
  }
  return status.WithContext(what);
}

void Client::StopWaiting() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->stopped.notify_all();
}

const ClientCounters& Client::counters() const {
  return impl_->counters;
}

}  // namespace rouse::kube
