#include "operator/kube/informer.h"

#include <malloc.h>
#include <pthread.h>

#include <random>
#include <utility>

#include "common/log.h"
#include "operator/kube/continue_token.h"

namespace rouse::kube {
namespace {

using std::chrono::duration_cast;
using std::chrono::steady_clock;

StreamEnd EndOf(const Status& status) {
  if (status.ok()) return StreamEnd::kClosed;
  return status.code() == StatusCode::kDeadlineExceeded ? StreamEnd::kSilent : StreamEnd::kBroken;
}

}  // namespace

Informer::Informer(Client& client, StoreSink& sink, InformerOptions options)
    : client_(client),
      sink_(sink),
      options_(std::move(options)),
      machine_(options_.resource, options_.list_watch),
      thread_([this] {
        pthread_setname_np(pthread_self(),
                           ("inf-" + options_.resource.plural).substr(0, 15).c_str());
        Run();
      }) {}

Informer::~Informer() {
  Stop();
  thread_.join();
}

void Informer::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  cancel_.Cancel();
  changed_.notify_all();
}

bool Informer::WaitSynced(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return synced_ || stopped_; });
  return synced_;
}

std::string Informer::last_error() const {
  std::lock_guard lock(mutex_);
  return last_error_;
}

void Informer::Run() {
  std::mt19937_64 random(options_.seed != 0 ? options_.seed : std::random_device()());
  std::uniform_real_distribution<double> jitter(0, 1);
  while (!stopped_) {
    const Command command = machine_.Next(jitter(random));
    if (!Sleep(command.delay)) return;
    if (command.kind == Command::Kind::kListPage) {
      DoList(command);
    } else {
      DoWatch(command);
    }
    CopyCounters();
  }
}

void Informer::DoList(const Command& command) {
  if (command.continue_token.empty()) list_began_ = steady_clock::now();
  const FetchedPage page = TakePage(command.continue_token);
  if (!page.text.ok()) {
    NoteError(page.text.status());
    machine_.OnPageFailed(page.error);
    return;
  }
  // A page takes the server about as long as us: the next is on its way while this is read.
  if (const std::string next = ContinueTokenOf(*page.text); !next.empty()) {
    ahead_ = {next, std::async(std::launch::async, [this, next] {
                pthread_setname_np(pthread_self(), "inf-ahead");
                return Fetch(next);
              })};
  }
  auto events = machine_.OnPage(*page.text);
  if (events.empty()) {
    NoteError(DataLoss("list " + options_.resource.plural + ": the answer is no list of " +
                       options_.resource.kind + " objects"));
    return;
  }
  NoteError({});
  const bool whole = events.back().kind == StoreEvent::Kind::kInitDone;
  Deliver(std::move(events));
  if (!whole) return;
  counters_.last_list_us = static_cast<std::uint64_t>(
      duration_cast<std::chrono::microseconds>(steady_clock::now() - list_began_).count());
  // The pages' trees are many small blocks; the allocator would keep them as our resident memory.
  malloc_trim(0);
  if (!synced_.exchange(true)) {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
}

FetchedPage Informer::Fetch(const std::string& token) {
  return client_.FetchListPage(options_.resource, options_.ns,
                               {.label_selector = options_.label_selector,
                                .field_selector = "",
                                .page_size = options_.page_size},
                               token);
}

// The page that was asked for ahead, if it is the one that is wanted. One of a list that was given
// up is waited for and dropped.
FetchedPage Informer::TakePage(const std::string& token) {
  auto [ahead, page] = std::exchange(ahead_, {});
  if (page.valid() && ahead == token) return page.get();
  return Fetch(token);
}

void Informer::DoWatch(const Command& command) {
  CopyCounters();
  const auto began = steady_clock::now();
  Status stopped_by;
  std::optional<ApiError> error;
  const Status status = client_.Watch(
      options_.resource, options_.ns,
      {.label_selector = options_.label_selector, .field_selector = ""}, command.resource_version,
      command.timeout, options_.silence, cancel_,
      [this, &stopped_by](std::string_view line) {
        if (stopped_) return Status(StatusCode::kCancelled, "stopping");
        std::vector<StoreEvent> events;
        stopped_by = machine_.OnLine(line, &events);
        Deliver(std::move(events));
        return stopped_by;
      },
      &error);
  if (stopped_) return;
  machine_.OnWatchEnded(
      EndOf(status), duration_cast<std::chrono::milliseconds>(steady_clock::now() - began), error);
  NoteError(stopped_by.ok() ? status : stopped_by);
}

void Informer::Deliver(std::vector<StoreEvent> events) {
  for (StoreEvent& event : events) {
    ++counters_.events;
    sink_.Take(std::move(event));
  }
}

void Informer::NoteError(const Status& status) {
  bool news = false;
  {
    std::lock_guard lock(mutex_);
    news = last_error_ != status.message();
    last_error_ = status.message();
  }
  // The same trouble again and again is one line, not thousands.
  if (news && !status.ok()) {
    log::Warning("list/watch interrupted",
                 {{"resource", options_.resource.plural}, {"error", status.ToString()}});
  }
}

void Informer::CopyCounters() {
  const ListWatchCounters& counts = machine_.counters();
  counters_.lists = counts.lists;
  counters_.watches = counts.watches;
  counters_.gone = counts.gone;
  counters_.garbage = counts.garbage;
  counters_.broken = counts.broken;
}

bool Informer::Sleep(std::chrono::milliseconds delay) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, delay, [this] { return stopped_.load(); });
}

}  // namespace rouse::kube
